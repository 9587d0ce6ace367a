"""Switching off leaves an ordinary table with every payload in its rows, or all as it was and a line that says why."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from offload_pipeline.database.table import inspect_table
from offload_pipeline.errors import TransientError, UserError
from offload_pipeline.install import uninstaller
from offload_pipeline.install.installer import Step
from offload_pipeline.install.uninstaller import carry_out, plan_uninstall
from offload_pipeline_tests.factories import install, large_payload, make_pipeline, make_table
from offload_pipeline_tests.offload.installation import RUN, Installation, installed
from offload_pipeline_tests.offload.waiting import in_thread, wait_until_blocked

THRESHOLD = 100
PAYLOADS = [large_payload(1000, seed) for seed in range(4)]
CATALOG = """
    SELECT 'column', attname::text, format_type(atttypid, atttypmod), attnotnull::text,
        (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum)
    FROM pg_attribute WHERE attrelid = 'notices'::regclass AND attnum > 0 AND NOT attisdropped
    UNION ALL SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid::text, NULL
    FROM pg_index WHERE indrelid = 'notices'::regclass
    UNION ALL SELECT 'trigger', tgname::text, tgenabled::text, NULL, NULL
    FROM pg_trigger WHERE tgrelid = 'notices'::regclass AND NOT tgisinternal
    UNION ALL SELECT 'function', oid::regprocedure::text, NULL, NULL, NULL
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE '%notices%'
"""


@pytest.fixture
def notices(database_url: str, local_store_url: str) -> Iterator[Installation]:
    with installed(database_url, local_store_url, threshold_bytes=THRESHOLD) as installation:
        yield installation


def catalog(connection: psycopg.Connection) -> set[tuple[Any, ...]]:
    return set(connection.execute(CATALOG).fetchall())


def kinds(connection: psycopg.Connection) -> set[str]:
    return {row[0] for row in catalog(connection) if row[1] != "notices_pkey"}


def plan(notices: Installation, *, drop_columns: bool = False) -> list[Step]:
    with notices.pipeline.connect() as connection:
        table = inspect_table(connection, notices.config, "public")
        return list(plan_uninstall(connection, table, drop_columns=drop_columns))


def uninstall(notices: Installation, *, drop_columns: bool = False) -> list[str]:
    steps = plan(notices, drop_columns=drop_columns)
    with notices.pipeline.connect() as connection:
        for step in steps:
            carry_out(connection, step)
    return [step.title for step in steps]


def reinstalled(notices: Installation) -> Installation:
    install(notices.pipeline)
    with notices.pipeline.connect() as connection:
        return replace(notices, table=notices.pipeline.table(connection, "notices"))


@pytest.mark.both_servers
@pytest.mark.parametrize("drop_columns", [False, True])
def test_it_is_refused_while_payloads_are_in_storage_and_changes_nothing(
    notices: Installation, drop_columns: bool
) -> None:
    notices.insert(PAYLOADS)
    notices.drain()
    before = catalog(notices.connection)
    with pytest.raises(UserError) as caught:
        uninstall(notices, drop_columns=drop_columns)
    assert str(caught.value) == (
        "notices: 4 payloads are in object storage alone; run: offload restore --table notices"
    )
    assert catalog(notices.connection) == before
    notices.restore()
    assert uninstall(notices, drop_columns=drop_columns)


@pytest.mark.both_servers
def test_triggers_functions_indexes_and_the_default_go_and_columns_and_bookkeeping_stay(
    notices: Installation,
) -> None:
    notices.insert([*PAYLOADS, None])
    notices.drain()
    notices.restore()
    uninstall(notices)
    assert kinds(notices.connection) == {"column"}
    columns = {row[1]: row[-1] for row in catalog(notices.connection) if row[0] == "column"}
    assert set(notices.config.columns.model_dump().values()) <= set(columns)
    assert columns["payload_storage_status"] is None, "no default"
    assert notices.connection.execute("SELECT count(*) > 0 FROM payload_offload_log").fetchone() == (True,)
    notices.assert_invariant()
    assert plan(notices) == [], "nothing is left to do"


@pytest.mark.both_servers
def test_with_its_columns_dropped_the_table_is_what_it_was_before_it_was_installed(
    database_url: str, local_store_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        config = make_table(connection, threshold_bytes=THRESHOLD)
        before = catalog(connection)
        pipeline = make_pipeline(database_url, local_store_url, [config])
        install(pipeline)
        table = pipeline.table(connection, "notices")
        notices = Installation(connection, database_url, pipeline, config, table)
        notices.insert(PAYLOADS)
        notices.drain()
        notices.restore()
        uninstall(notices, drop_columns=True)
        assert catalog(connection) == before
        notices.take_rows_as_expected()
        assert len(set(notices.expected.values())) == len(PAYLOADS)
        for bookkeeping in ("payload_offload_state", "payload_offload_failures"):
            assert connection.execute(f"SELECT count(*) FROM {bookkeeping}").fetchone() == (0,)  # noqa: S608
        assert connection.execute("SELECT count(*) > 0 FROM payload_offload_log").fetchone() == (True,)
        assert plan(notices, drop_columns=True) == plan(notices) == []


@pytest.mark.both_servers
def test_columns_may_be_dropped_later(notices: Installation) -> None:
    notices.insert(PAYLOADS)
    uninstall(notices)
    titles = uninstall(notices, drop_columns=True)
    assert titles == ["notices: index for in_storage rows", "notices: triggers, functions and columns"]
    assert not any(name in str(catalog(notices.connection)) for name in notices.config.columns.model_dump().values())


@pytest.mark.both_servers
def test_copied_and_queued_rows_are_forgotten_and_their_payloads_stay(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uninstaller, "PAGE_ROWS", 2)
    copied = notices.insert(PAYLOADS)
    notices.copy()
    queued = notices.insert(PAYLOADS[:2], tenant="globex")
    small = notices.insert(['{"n": 1}'])
    uninstall(notices)
    assert notices.statuses() == dict.fromkeys([*copied, *queued]) | {small[0]: "inline"}
    pointers = notices.execute(
        "SELECT count(payload_bytes) + count(raw_object_key) + count(payload_hash_sha256) + count(payload_stored_at)"
        " FROM {table}"
    )
    assert pointers.fetchone() == (0,)
    notices.assert_invariant()


@pytest.mark.both_servers
def test_the_application_then_writes_as_to_any_table(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    notices.restore()
    uninstall(notices)
    notices.execute("UPDATE {table} SET raw_payload = raw_payload || '{{\"seen\": true}}' WHERE id = %s", key)
    notices.execute("UPDATE {table} SET raw_payload = NULL WHERE id = %s", key)
    (new,) = notices.insert(PAYLOADS[1:2])
    assert notices.statuses()[new] is None


@pytest.mark.both_servers
@pytest.mark.parametrize("drop_columns", [False, True])
def test_installed_again_a_backfill_moves_what_was_written_before_and_meanwhile(
    notices: Installation, drop_columns: bool
) -> None:
    copied = notices.insert(PAYLOADS[:2])
    notices.execute("UPDATE {table} SET payload_storage_status = NULL, payload_bytes = NULL")
    notices.pipeline.drain(notices.partition(), RUN, unseen=True)
    held = notices.insert(PAYLOADS[2:3])
    notices.copy()
    notices.restore()
    notices.write(copied[0], large_payload(500, 7))
    notices.copy()
    uninstall(notices, drop_columns=drop_columns)
    notices.insert(PAYLOADS[:2])
    notices.insert(PAYLOADS[:1], tenant="globex")
    notices.write(copied[0], large_payload(600, 8))

    again = reinstalled(notices)
    for tenant in ("acme", "globex"):
        assert again.pipeline.drain(again.partition(tenant), RUN, unseen=True).is_sound
        assert again.pipeline.verify(again.partition(tenant), RUN, full=True).passed
    again.assert_invariant()
    kept = {key for key, status in again.statuses().items() if status != "in_storage"}
    # With the columns went the knowledge that these were restored.
    assert kept == (set() if drop_columns else {copied[1], *held})
    again.write(held[0], large_payload(700, 9))
    assert again.drain().is_sound
    assert again.statuses()[held[0]] == "in_storage"
    again.assert_invariant()


def test_what_grew_meanwhile_moves_once_it_is_made_never_seen(notices: Installation) -> None:
    (grown,) = notices.insert(['{"n": 1}'])
    uninstall(notices)
    notices.write(grown, PAYLOADS[0])
    again = reinstalled(notices)
    again.pipeline.drain(again.partition(), RUN, unseen=True)
    assert again.one_status() == "inline"
    again.execute(
        "UPDATE {table} SET payload_storage_status = NULL"
        " WHERE payload_storage_status = 'inline' AND payload_bytes IS NULL"
    )
    again.pipeline.drain(again.partition(), RUN, unseen=True, resume=False)
    assert again.one_status() == "in_storage"
    again.assert_invariant()


def test_nothing_moves_while_it_is_switched_off(notices: Installation) -> None:
    notices.insert(PAYLOADS)
    notices.copy()
    notices.verify()
    uninstall(notices)
    for table, tenant in ((None, None), ("notices", "acme")):
        with pytest.raises(UserError, match=r"^notices: the size trigger is missing; .* run: offload install"):
            notices.pipeline.partitions(notices.connection, table, tenant)
    with pytest.raises(UserError, match="the size trigger is missing"):
        notices.pipeline.partitions_of_key(notices.connection, "notices", "acme")


@pytest.mark.both_servers
def test_a_release_that_began_before_frees_nothing_once_the_trigger_is_gone(notices: Installation) -> None:
    notices.insert(PAYLOADS)
    notices.copy()
    notices.verify()
    first, *_ = plan(notices)
    with notices.pipeline.connect() as connection:
        carry_out(connection, first)
    assert set(notices.statuses().values()) == {"copied"}
    assert notices.release().rows_released == 0, "with the table as it was before"
    notices.assert_invariant()


@pytest.mark.both_servers
def test_a_release_that_waited_for_the_lock_of_the_uninstall_frees_nothing(notices: Installation) -> None:
    notices.insert(PAYLOADS)
    notices.copy()
    notices.verify()
    with psycopg.connect(notices.database_url) as other:
        other.execute("DROP TRIGGER zz_payload_offload_update ON notices")
        with in_thread(notices.release) as release:
            wait_until_blocked(notices.connection)
            other.commit()
            assert release.result(timeout=30).rows_released == 0
    assert set(notices.statuses().values()) == {"copied"}
    notices.assert_invariant()


@pytest.mark.parametrize("mode", ["DISABLE", "ENABLE REPLICA"])
def test_nothing_is_freed_while_the_trigger_is_disabled(notices: Installation, mode: str) -> None:
    notices.insert(PAYLOADS)
    notices.copy()
    notices.verify()
    notices.execute(f"ALTER TABLE {{table}} {mode} TRIGGER zz_payload_offload_update")
    assert notices.release().rows_released == 0
    notices.execute("ALTER TABLE {table} ENABLE TRIGGER zz_payload_offload_update")
    assert notices.release().rows_released == 4
    notices.assert_invariant()


@pytest.mark.both_servers
def test_payloads_that_go_to_storage_between_the_look_and_the_lock_stop_it_before_anything_is_dropped(
    notices: Installation,
) -> None:
    steps = plan(notices)
    notices.insert(PAYLOADS)
    notices.drain()
    before = catalog(notices.connection)
    with notices.pipeline.connect() as connection, pytest.raises(UserError, match="offload restore"):
        carry_out(connection, steps[0])
    assert catalog(notices.connection) == before
    notices.assert_invariant()


def test_a_copy_whose_payload_was_removed_past_the_trigger_keeps_its_pointer_and_the_table_its_triggers(
    notices: Installation,
) -> None:
    keys = notices.insert(PAYLOADS)
    notices.copy()
    with notices.connection.transaction():
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute("UPDATE {table} SET raw_payload = NULL WHERE id = %s", keys[0])
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
    with pytest.raises(UserError, match="1 payload is in object storage alone"):
        uninstall(notices)
    assert notices.object_key(keys[0])


@pytest.mark.both_servers
@pytest.mark.parametrize("drop_columns", [False, True])
def test_rows_in_storage_that_the_role_may_not_see_stop_it(notices: Installation, drop_columns: bool) -> None:
    notices.insert(PAYLOADS, tenant="globex")
    notices.drain("globex")
    connection = notices.connection
    connection.execute("DROP ROLE IF EXISTS held_back")
    connection.execute("CREATE ROLE held_back")
    try:
        notices.execute("ALTER TABLE {table} OWNER TO held_back")
        notices.execute("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        notices.execute("ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        notices.execute("CREATE POLICY own ON {table} USING (tenant_id = 'acme')")
        before = catalog(connection)
        with notices.pipeline.connect() as held_back:
            held_back.execute("SET ROLE held_back")
            with pytest.raises(UserError, match=r"^notices: cannot see every row .* row security$"):
                list(plan_uninstall(held_back, notices.table, drop_columns=drop_columns))
        assert catalog(connection) == before
    finally:
        connection.execute("REASSIGN OWNED BY held_back TO CURRENT_USER")
        connection.execute("DROP OWNED BY held_back")
        connection.execute("DROP ROLE held_back")
    notices.assert_invariant()


@pytest.mark.parametrize("drop_columns", [False, True])
def test_columns_under_other_names_than_configured_stop_it_since_nobody_would_look_at_them(
    notices: Installation, drop_columns: bool
) -> None:
    notices.insert(PAYLOADS)
    notices.drain()
    before = catalog(notices.connection)
    columns = notices.config.columns.model_copy(update={"hash": "sha256"})
    renamed = replace(notices, config=notices.config.model_copy(update={"columns": columns}))
    with pytest.raises(UserError, match="the pointer column sha256 is missing, so nothing tells which payloads are in"):
        uninstall(renamed, drop_columns=drop_columns)
    assert catalog(notices.connection) == before
    notices.assert_invariant()


def test_rows_that_the_application_holds_are_said_and_a_second_run_ends_it(notices: Installation) -> None:
    first, *_ = notices.insert(PAYLOADS)
    notices.copy()
    steps = plan(notices)
    with notices.pipeline.connect() as connection:
        carry_out(connection, steps[0])
        with psycopg.connect(notices.database_url) as other:
            notices.execute("SELECT FROM {table} WHERE id = %s FOR UPDATE", first, connection=other)
            with pytest.raises(TransientError, match="1 row held by the application; run it again"):
                carry_out(connection, steps[1])
    assert uninstall(notices)
    assert set(notices.statuses().values()) == {None}
    assert plan(notices) == []


def test_what_depends_on_a_column_is_named_and_nothing_is_dropped(notices: Installation) -> None:
    notices.execute("CREATE VIEW stored AS SELECT id, raw_object_key FROM {table}")
    before = catalog(notices.connection)
    with pytest.raises(UserError, match=r"view stored depends on column raw_object_key .* nothing was dropped"):
        uninstall(notices, drop_columns=True)
    assert catalog(notices.connection) == before
    assert uninstall(notices), "without dropping columns it works"


def test_a_status_that_may_not_be_null_keeps_its_default(database_url: str, local_store_url: str) -> None:
    own = {"payload_storage_status": "text NOT NULL DEFAULT 'inline'"}
    with installed(database_url, local_store_url, threshold_bytes=THRESHOLD, extra_columns=own) as notices:
        notices.insert(PAYLOADS)
        notices.copy()
        uninstall(notices)
        notices.insert(PAYLOADS)
        assert set(notices.statuses().values()) == {"inline"}
        notices.assert_invariant()


def test_a_function_of_the_same_name_that_is_not_ours_stays(notices: Installation) -> None:
    notices.connection.execute("DROP FUNCTION get_notices_payload(bigint)")
    notices.connection.execute("CREATE FUNCTION get_notices_payload(text) RETURNS int LANGUAGE sql RETURN 1")
    uninstall(notices)
    assert kinds(notices.connection) == {"column", "function"}


def test_another_table_goes_on_as_before(database_url: str, local_store_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        configs = [
            make_table(connection, threshold_bytes=0),
            make_table(connection, name="mails", relation="mails", threshold_bytes=0),
        ]
        pipeline = make_pipeline(database_url, local_store_url, configs)
        install(pipeline)
        tables = [pipeline.table(connection, config.name) for config in configs]
        notices, mails = (
            Installation(connection, database_url, pipeline, config, table)
            for config, table in zip(configs, tables, strict=True)
        )
        mails.insert(PAYLOADS)
        mails.drain()
        uninstall(notices, drop_columns=True)
        mails.insert(PAYLOADS)
        assert mails.drain().is_sound
        assert mails.one_status() == "in_storage"
        mails.assert_invariant()


def test_a_table_that_was_never_installed_has_nothing_to_remove(database_url: str, local_store_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        config = make_table(connection)
        pipeline = make_pipeline(database_url, local_store_url, [config])
        for drop_columns in (False, True):
            table = pipeline.inspect(connection, "notices")
            assert list(plan_uninstall(connection, table, drop_columns=drop_columns)) == []


@pytest.mark.both_servers
@pytest.mark.parametrize("drop_columns", [False, True])
def test_the_printed_script_does_what_uninstall_does(notices: Installation, drop_columns: bool) -> None:
    notices.insert(PAYLOADS)
    notices.copy()
    with notices.pipeline.connect() as connection:
        for step in plan(notices, drop_columns=drop_columns):
            connection.execute(step.as_script(connection))
    assert plan(notices, drop_columns=drop_columns) == []
    assert kinds(notices.connection) == {"column"}
