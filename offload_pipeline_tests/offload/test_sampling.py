"""What a sample reads and what it leaves alone, whatever the table is like and whoever asks."""

from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from offload_pipeline.config import TableConfig
from offload_pipeline.database.connection import Database, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import inspect_table
from offload_pipeline.errors import TransientError, UserError
from offload_pipeline.offload.plan import PlanOptions, forecast_table
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_pipeline, make_table
from offload_pipeline_tests.offload.population import (
    SIZES,
    Forecaster,
    count,
    documents,
    fill,
    holds,
    lose_a_toast_chunk,
    one,
    values,
)
from offload_pipeline_tests.servers import PostgresServer, wait_until


def blocks_and_scans(connection: psycopg.Connection) -> tuple[int, int]:
    """Blocks of notices that any session touched, and its full scans; each session tells, at the latest, as it ends."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert wait_until(lambda: one(connection, others) == 0), "another session is still there"
    connection.execute("SELECT pg_stat_force_next_flush()")
    found = connection.execute(
        "SELECT b.heap_blks_read + b.heap_blks_hit, t.seq_scan"
        " FROM pg_statio_all_tables AS b JOIN pg_stat_all_tables AS t USING (relid) WHERE relid = 'notices'::regclass"
    ).fetchone()
    assert found is not None
    return found[0], found[1]


@pytest.mark.both_servers
def test_no_page_but_the_chosen_ones_is_read_and_no_table_scanned(
    database_url: str, connection: psycopg.Connection, forecast: Forecaster
) -> None:
    config = make_table(connection, threshold_bytes=100_000)
    connection.execute(
        "INSERT INTO notices (tenant_id, raw_payload) SELECT 'acme', jsonb_build_object('text', repeat('x', 900))"
        " FROM generate_series(1, 40000)"
    )
    connection.execute("VACUUM notices")
    pages = one(connection, "SELECT pg_relation_size('notices') / 8192")
    assert pages > 4000
    before = blocks_and_scans(connection)
    found = forecast(config)
    after = blocks_and_scans(connection)
    assert (found.sampled.pages, found.sampled.pages_total) == (300, pages)
    assert after[0] - before[0] == 300, "compared with their threshold, none of these payloads need be read"
    assert after[1] == before[1]
    assert found.rows.low <= 40_000 <= (found.rows.high or 0)
    assert found.rows_to_move.value == 0
    assert 0 < (found.rows_to_move.high or 0) < 1000, "rows that no page of the sample shows"
    assert found.payload_bytes.high is None


@pytest.mark.both_servers
def test_payloads_are_fetched_by_place_even_where_the_planner_takes_the_table_for_tiny(
    database_url: str, connection: psycopg.Connection, forecast: Forecaster
) -> None:
    config = make_table(connection, threshold_bytes=0)
    connection.execute("ANALYZE notices")
    fill(connection, config, documents(10_000, lambda *_: 900))
    _, scans_before = blocks_and_scans(connection)
    assert forecast(config).sampled.payloads > 1000
    assert blocks_and_scans(connection)[1] == scans_before


@pytest.mark.both_servers
def test_an_empty_table_has_nothing_to_move(connection: psycopg.Connection, forecast: Forecaster) -> None:
    found = forecast(make_table(connection))
    assert found.is_exact
    assert values(found).rows == values(found).rows_to_move == values(found).payload_bytes == 0
    assert found.freed_bytes.value == found.compression_ratio.value == 0
    assert found.requests.put == found.requests.get_sample == 0


@pytest.mark.both_servers
@pytest.mark.parametrize("rows_of_each", [[60, 0, 3], [3000, 0, 2500]])
def test_the_partitions_of_a_table_are_one_table(
    connection: psycopg.Connection, forecast: Forecaster, rows_of_each: list[int]
) -> None:
    columns = "id bigint DEFAULT 1, tenant_id text, raw_payload jsonb"
    connection.execute(f"CREATE TABLE notices ({columns}) PARTITION BY LIST (tenant_id)".encode())
    config = TableConfig.model_validate(
        {"name": "notices", "relation": "notices", "tenant": {"column": "tenant_id"}, "payload": "raw_payload",
         "threshold_bytes": 1200}
    )  # fmt: skip
    for number, rows in enumerate(rows_of_each):
        connection.execute(f"CREATE TABLE \"100% {number}\" PARTITION OF notices FOR VALUES IN ('{number}')".encode())
        fill(connection, config, documents(rows, SIZES["skewed"], seed=number), tenant=str(number))
    found, truth = forecast(config), count(connection, config)
    assert found.is_exact == (sum(rows_of_each) < 100)
    assert all(holds(found, truth).values())
    assert found.rows_to_move.value == pytest.approx(truth.rows_to_move, rel=0.2)
    assert found.sizes.heap_bytes >= 8192 * found.sampled.pages_total > 0


def test_rows_of_tables_that_inherit_are_counted_once(connection: psycopg.Connection, forecast: Forecaster) -> None:
    config = make_table(connection, threshold_bytes=0)
    connection.execute("CREATE TABLE older () INHERITS (notices)")
    insert_payloads(connection, config, ['{"a": 1}'])
    connection.execute("INSERT INTO older (id, tenant_id, raw_payload) VALUES (7, 'acme', '{\"a\": 2}')")
    found = forecast(config)
    assert found.is_exact
    assert values(found) == count(connection, config)
    assert found.rows.value == 2


@pytest.mark.both_servers
def test_names_of_any_characters_are_sampled_like_others(connection: psycopg.Connection, forecast: Forecaster) -> None:
    connection.execute('CREATE SCHEMA "s%s"')
    config = make_table(
        connection, name="odd", relation='"s%s"."No""tices %(x)s"', payload='pay"load %s', tenant_column="ten%ant",
        key_columns={"k%y": "integer", "other key": "text"}, threshold_bytes=0,
    )  # fmt: skip
    for number in range(3):
        keys: dict[str, Any] = {"k%y": number, "other key": "a,b%"}
        insert_payloads(connection, config, [large_payload(3000, number)], **keys)
    found = forecast(config)
    assert found.is_exact
    assert values(found) == count(connection, config)
    assert found.rows_to_move.value == 3


@pytest.mark.both_servers
def test_nothing_is_left_behind_not_even_in_a_session_that_a_pooler_keeps(
    connection: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_table(connection, threshold_bytes=0)
    fill(connection, config, documents(200, SIZES["skewed"]))
    what = "SELECT (SELECT count(*) FROM pg_class)::text || string_agg(xmin::text || ctid::text, ',') FROM notices"
    database = Database(database_url, "public")
    session = database.connect()
    before = one(session, what)
    with monkeypatch.context() as patched:
        patched.setattr(session, "close", lambda: None)
        patched.setattr(Database, "connect", lambda _: session)
        table = inspect_table(session, config, "public")
        assert forecast_table(database, table, PlanOptions("standard", "", 50)).rows_to_move.value == 200
    assert one(session, what) == before
    session.close()


@pytest.mark.both_servers
def test_a_standby_gives_the_forecast_of_its_primary(postgres_server: PostgresServer, local_store_url: str) -> None:
    primary = PostgresServer(postgres_server.bin_dir)
    try:
        with psycopg.connect(primary.url(), autocommit=True) as connection:
            config = make_table(connection, threshold_bytes=1000)
            fill(connection, config, documents(200, SIZES["skewed"]))
            truth = count(connection, config)
        standby = PostgresServer(postgres_server.bin_dir, primary=primary)
        try:
            pipeline = make_pipeline(standby.url(), local_store_url, [config])
            with pipeline.connect() as connection:
                found = pipeline.forecast(pipeline.inspect(connection, "notices"))
        finally:
            standby.close()
    finally:
        primary.close()
    assert values(found) == truth
    assert found.no_lz4_because in ("transactions are read-only here", "this server was built without lz4")


def test_a_role_that_may_not_read_the_table_is_told_so_in_one_line(
    postgres_server: PostgresServer, connection: psycopg.Connection, database_url: str
) -> None:
    config = make_table(connection)
    insert_payloads(connection, config, ["{}"])
    connection.execute("DROP ROLE IF EXISTS stranger")
    connection.execute("CREATE ROLE stranger LOGIN")
    try:
        database = Database(database_url.replace("postgres@", "stranger@"), "public")
        pipeline = make_pipeline(database.url, None, [config])
        with pytest.raises(UserError, match=r"^notices: permission denied for table notices; grant SELECT"):
            forecast_table(database, pipeline.inspect(connection, "notices"), PlanOptions("standard", "", 50))
    finally:
        connection.execute("DROP ROLE stranger")


@pytest.mark.both_servers
def test_a_payload_that_cannot_be_read_is_left_out_and_counted(
    connection: psycopg.Connection, forecast: Forecaster
) -> None:
    config = make_table(connection, threshold_bytes=1000)
    insert_payloads(connection, config, [large_payload(20_000, seed) for seed in range(10)])
    lose_a_toast_chunk(connection)
    with pytest.raises(errors.DataCorrupted):
        count(connection, config)
    found = forecast(config)
    assert (found.sampled.payloads, found.sampled.unreadable) == (9, 1)
    assert not found.is_exact
    assert (found.rows.value, found.rows_to_move.value) == (10, 10)
    assert found.payload_bytes.value == pytest.approx(200_000, rel=0.01)


def limit_statements(connection: psycopg.Connection, limit: str) -> None:
    """For the sessions of this database that begin from now on."""
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("ALTER DATABASE {} SET statement_timeout = {}").format(name, sql.Literal(limit)))


@pytest.mark.parametrize(("own", "limit"), [("2s", "2s"), ("0", "1min"), ("1h", "1min")])
def test_statements_keep_to_the_sessions_own_limit_or_a_minute(
    connection: psycopg.Connection, database_url: str, own: str, limit: str
) -> None:
    limit_statements(connection, own)
    with Database(database_url, "public").connect() as session, transaction(session):
        session.execute(statement("offload/plan", "stay_modest"), {"limit_ms": 60_000})
        assert one(session, "SHOW statement_timeout") == limit


def test_a_table_that_stays_locked_ends_in_one_line(
    connection: psycopg.Connection, database_url: str, forecast: Forecaster
) -> None:
    config = make_table(connection)
    insert_payloads(connection, config, ["{}"])
    limit_statements(connection, "200ms")
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE notices IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(
            TransientError, match=r"^notices: no sample could be taken \(canceling statement due to statement"
        ):
            forecast(config)
