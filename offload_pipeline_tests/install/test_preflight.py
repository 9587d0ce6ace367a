"""What install refuses: one line each, with the mend, and before anything is changed."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from offload_pipeline.config import TableConfig
from offload_pipeline.database.table import inspect_table
from offload_pipeline.errors import UserError
from offload_pipeline.install.installer import plan_bookkeeping, plan_table, run
from offload_pipeline.install.uninstaller import carry_out, plan_uninstall_all
from offload_pipeline_tests.factories import insert_payloads, install, make_pipeline, make_table, statuses
from offload_pipeline_tests.servers import PostgresServer

STORE_URL = "s3://payloads"
POINTER = (
    'ADD COLUMN "payload_storage_status" text, ADD COLUMN "payload_bytes" bigint, ADD COLUMN "raw_object_key" text, '
    'ADD COLUMN "payload_hash_sha256" text, ADD COLUMN "payload_stored_at" timestamptz'
)
NOTICES = "CREATE TABLE notices (id bigint PRIMARY KEY, tenant_id text, raw_payload jsonb, created_at timestamptz)"


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connected:
        yield connected


@pytest.fixture
def role(connection: psycopg.Connection) -> Iterator[str]:
    """A login without any right; roles are shared by all databases of the server."""
    name = f"role_{uuid.uuid4().hex[:12]}"
    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
    yield name
    connection.execute("RESET ROLE")
    connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def configured(**options: Any) -> TableConfig:
    return TableConfig(
        **{
            "name": "notices",
            "relation": "public.notices",
            "tenant": {"column": "tenant_id"},
            "payload": "raw_payload",
            **options,
        }
    )


def refusal(connection: psycopg.Connection, **options: Any) -> str:
    """The one line with which install refuses the table; nothing may have been changed by then."""
    with pytest.raises(UserError) as caught:
        list(plan_table(connection, inspect_table(connection, configured(**options), "public"), STORE_URL))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("notices: ")
    return message.removeprefix("notices: ")


@pytest.mark.parametrize(
    ("setup", "options", "said"),
    [
        ("SELECT", {}, "no table public.notices in database "),
        ('CREATE TABLE "Notices" ()', {}, 'did you mean public."Notices"?'),
        ('CREATE SCHEMA "o""d"; CREATE TABLE "o""d"."NoTices" ()', {}, 'did you mean "o""d"."NoTices"?'),
        ("CREATE VIEW notices AS SELECT 1 AS id", {}, "is no ordinary table; name the table behind it"),
        (
            "CREATE MATERIALIZED VIEW notices AS SELECT 1 AS id",
            {},
            "is no ordinary table; name the table behind it",
        ),
        (
            NOTICES,
            {"payload": "raw_paylod"},
            "payload: public.notices has no column raw_paylod; did you mean raw_payload?",
        ),
        (
            NOTICES,
            {"tenant": {"column": "tenent_id"}},
            "tenant.column: public.notices has no column tenent_id; did you",
        ),
        (
            NOTICES,
            {"created_at": "created"},
            "created_at: public.notices has no column created; did you mean created_at?",
        ),
        (NOTICES, {"primary_key": "ID"}, "primary_key: public.notices has no column ID; did you mean id?"),
        (NOTICES, {"payload": "zzzzzzz"}, "has no column zzzzzzz; it has id, tenant_id, raw_payload, created_at"),
        (NOTICES.replace("jsonb", "bytea"), {}, "payload raw_payload is bytea; only jsonb, json and text columns"),
        (NOTICES.replace(" PRIMARY KEY", ""), {}, "has no primary key; add one: its rows cannot be told apart"),
        (NOTICES, {"primary_key": "tenant_id"}, "primary_key [tenant_id] is not unique in"),
        (NOTICES, {"primary_key": ["id", "tenant_id"]}, 'is not unique in "public"."notices"; write [id]'),
        (
            NOTICES.replace("jsonb", "jsonb NOT NULL"),
            {},
            "is NOT NULL and after_copy is clear; ALTER COLUMN raw_payload",
        ),
        (
            NOTICES.replace(")", ", payload_bytes text)"),
            {},
            "columns.size: payload_bytes is text, not bigint; name another column",
        ),
        (
            NOTICES.replace(")", ", payload_stored_at timestamp)"),
            {},
            "columns.stored_at: payload_stored_at is timestamp without time zone, not timestamp with time zone",
        ),
        (
            NOTICES.replace(")", ", raw_object_key text NOT NULL)"),
            {},
            "columns.object_key: raw_object_key is NOT NULL",
        ),
        (
            f"{NOTICES} PARTITION BY RANGE (id)",
            {},
            f'is partitioned, and its partitions are offloaded one by one; ALTER TABLE "public"."notices" {POINTER}, '
            "then name one of them as relation",
        ),
        (
            f"{NOTICES.replace('notices', 'parent')} PARTITION BY RANGE (id);"
            "CREATE TABLE notices PARTITION OF parent FOR VALUES FROM (0) TO (9)",
            {},
            f"is a partition, to which columns cannot be added; ALTER TABLE parent {POINTER}",
        ),
        (
            f"{NOTICES.replace('notices', 'parent').replace(')', ', payload_bytes bigint)')} PARTITION BY RANGE (id);"
            "CREATE TABLE parts PARTITION OF parent FOR VALUES FROM (0) TO (99) PARTITION BY RANGE (id);"
            "CREATE TABLE notices PARTITION OF parts FOR VALUES FROM (0) TO (9)",
            {},
            'ALTER TABLE parent ADD COLUMN "payload_storage_status" text, ADD COLUMN "raw_object_key" text, '
            'ADD COLUMN "payload_hash_sha256" text, ADD COLUMN "payload_stored_at" timestamptz',
        ),
    ],
)
def test_an_unfit_table_is_refused_with_the_mend(
    connection: psycopg.Connection, setup: str, options: dict[str, Any], said: str
) -> None:
    connection.execute(setup)
    assert said in refusal(connection, **options)


@pytest.mark.parametrize(
    ("key", "is_taken"),
    [
        ("UNIQUE INDEX notices_key ON notices (tenant_id)", True),
        ("INDEX notices_key ON notices (tenant_id)", False),
        ("UNIQUE INDEX notices_key ON notices (tenant_id) WHERE id > 5", False),
        ("UNIQUE INDEX notices_key ON notices (lower(tenant_id))", False),
        ("UNIQUE INDEX notices_key ON notices (tenant_id, lower(tenant_id))", False),
        ("UNIQUE INDEX notices_key ON notices (tenant_id, id)", False),
        ("UNIQUE INDEX notices_key ON notices (tenant_id) INCLUDE (id)", True),
    ],
)
def test_only_a_plain_unique_index_over_filled_columns_can_stand_for_the_primary_key(
    connection: psycopg.Connection, key: str, *, is_taken: bool
) -> None:
    connection.execute(NOTICES.replace("text", "text NOT NULL"))
    connection.execute(f"CREATE {key}")
    if is_taken:
        config = configured(primary_key="tenant_id")
        assert list(plan_table(connection, inspect_table(connection, config, "public"), STORE_URL))
    else:
        assert "is not unique" in refusal(connection, primary_key="tenant_id")


def test_a_unique_index_over_a_column_that_may_be_null_identifies_no_row(connection: psycopg.Connection) -> None:
    connection.execute(NOTICES)
    connection.execute("CREATE UNIQUE INDEX ON notices (tenant_id)")
    assert "is not unique" in refusal(connection, primary_key="tenant_id")


def test_a_payload_that_may_not_be_null_can_leave_a_reference(connection: psycopg.Connection) -> None:
    connection.execute(NOTICES.replace("jsonb", "jsonb NOT NULL"))
    config = configured(after_copy="reference")
    assert list(plan_table(connection, inspect_table(connection, config, "public"), STORE_URL))


def test_a_column_of_a_domain_is_taken_for_its_base_type(connection: psycopg.Connection) -> None:
    connection.execute("CREATE DOMAIN document AS jsonb CHECK (VALUE IS NULL OR jsonb_typeof(VALUE) = 'object')")
    connection.execute(NOTICES.replace("jsonb", "document"))
    assert list(plan_table(connection, inspect_table(connection, configured(), "public"), STORE_URL))


def test_a_partition_works_once_its_parent_has_the_columns(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    connection.execute(f"{NOTICES.replace('notices', 'parent')} PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE notices PARTITION OF parent FOR VALUES FROM (0) TO (9)")
    connection.execute(refusal(connection).partition("; ")[2].encode())
    config = configured(threshold_bytes=0)
    pipeline = make_pipeline(database_url, local_store_url, [config])
    install(pipeline)
    insert_payloads(connection, config, ["{}"], id=1)
    with pipeline.connect() as session:
        (partition,) = pipeline.partitions(session, None, None)
    assert pipeline.drain(partition, "test").released.rows_released == 1
    assert statuses(connection, config) == {1: "in_storage"}
    pipeline.restore(partition, "test")
    with pipeline.connect() as session:
        table = pipeline.inspect(session, "notices")
        with pytest.raises(UserError, match="those of the partitioned table parent; omit --drop-columns") as refused:
            plan_uninstall_all(session, [table], drop_columns=True)
        for step in plan_uninstall_all(session, [table], drop_columns=False):
            carry_out(session, step)
    connection.execute(str(refused.value).partition("uninstalled: ")[2].encode())
    left = connection.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'notices'::regclass AND attnum > 4")
    assert {name for (name,) in left if "pg.dropped" not in name} == set()


@pytest.mark.both_servers
def test_two_tables_do_not_go_by_one_name(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    connection.execute(f"{NOTICES}; CREATE SCHEMA other; CREATE TABLE other.notices (LIKE notices INCLUDING ALL)")
    mine, others = (
        make_pipeline(database_url, local_store_url, [configured(relation=f"{schema}.notices")])
        for schema in ("public", "other")
    )
    install(mine)
    with pytest.raises(UserError, match="the table notices goes by this name already, and its gate would open for"):
        install(others)
    assert install(mine) == []


# Rights


def test_a_role_that_does_not_own_the_table_is_told_who_does(connection: psycopg.Connection, role: str) -> None:
    connection.execute(NOTICES)
    connection.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {role}")
    connection.execute(f"SET ROLE {role}")
    said = refusal(connection)
    assert said == f'{role} does not own "public"."notices"; connect as postgres, or GRANT postgres TO {role}'


def test_an_owner_that_may_not_create_is_told_the_grant(connection: psycopg.Connection, role: str) -> None:
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    connection.execute(NOTICES)
    connection.execute(f"ALTER TABLE notices OWNER TO {role}")
    connection.execute(f"SET ROLE {role}")
    said = refusal(connection)
    assert said == f"{role} may not create in schema public; GRANT CREATE, USAGE ON SCHEMA public TO {role}"


def test_a_schema_that_the_role_may_not_even_use_is_named(connection: psycopg.Connection, role: str) -> None:
    connection.execute("CREATE SCHEMA closed")
    connection.execute(NOTICES.replace("notices", "closed.notices"))
    connection.execute(f"ALTER TABLE closed.notices OWNER TO {role}")
    connection.execute(f"SET ROLE {role}")
    assert f"{role} may not create in schema closed" in refusal(connection, relation="closed.notices")


def test_an_owner_with_the_grants_can_install(
    connection: psycopg.Connection, database_url: str, local_store_url: str, role: str
) -> None:
    config = make_table(connection)
    connection.execute(f"ALTER ROLE {role} LOGIN")
    connection.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {role}")
    connection.execute(f"ALTER TABLE notices OWNER TO {role}")
    url = database_url.replace("postgres@", f"{role}@", 1)
    pipeline = make_pipeline(url, local_store_url, [config])
    assert install(pipeline)
    assert install(pipeline) == []


def test_bookkeeping_without_the_right_to_create_is_refused_in_one_line(
    connection: psycopg.Connection, role: str
) -> None:
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    connection.execute(f"SET ROLE {role}")
    (step,) = plan_bookkeeping(connection, "public")
    with pytest.raises(UserError, match="permission denied for schema public; run install as the owner") as caught:
        run(connection, step)
    assert "\n" not in str(caught.value)


# The database


def test_a_schema_for_the_bookkeeping_must_exist(connection: psycopg.Connection) -> None:
    with pytest.raises(UserError, match=r"database\.schema: no schema ops in this database; create it"):
        list(plan_bookkeeping(connection, "ops"))


def test_a_database_that_is_not_in_utf8_is_refused(
    connection: psycopg.Connection, postgres_server: PostgresServer
) -> None:
    name = f"latin1_{uuid.uuid4().hex[:12]}"
    connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with (
            psycopg.connect(postgres_server.url(name), autocommit=True) as latin1,
            pytest.raises(
                UserError, match="the database is encoded in LATIN1; payloads are stored and hashed as UTF-8"
            ),
        ):
            list(plan_bookkeeping(latin1, "public"))
    finally:
        postgres_server.drop_database(name)


def test_a_column_generated_from_the_payload_is_refused_where_payloads_are_freed(
    connection: psycopg.Connection,
) -> None:
    connection.execute(NOTICES)
    connection.execute(
        "ALTER TABLE notices ADD COLUMN title text GENERATED ALWAYS AS (raw_payload ->> 'title') STORED,"
        " ADD COLUMN shout text GENERATED ALWAYS AS (upper(tenant_id)) STORED"
    )
    assert refusal(connection).startswith("title is generated from raw_payload")
    assert list(plan_table(connection, inspect_table(connection, configured(after_copy="keep"), "public"), STORE_URL))


@pytest.mark.both_servers
@pytest.mark.parametrize("column", ["tenant_id", "region"])
def test_a_tenant_or_key_whose_equality_is_not_that_of_text_is_refused(
    connection: psycopg.Connection, column: str
) -> None:
    try:
        connection.execute("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this build of PostgreSQL has no ICU, and so no such collation")
    connection.execute("CREATE TABLE notices (region text, tenant_id text, raw_payload jsonb)")
    connection.execute(f"ALTER TABLE notices ALTER {column} TYPE text COLLATE loose, ADD PRIMARY KEY (region)")
    assert refusal(connection, primary_key=["region"]).startswith(f"{column} takes different texts for equal")


def test_a_table_that_others_inherit_from_is_refused(connection: psycopg.Connection) -> None:
    connection.execute(NOTICES)
    connection.execute("CREATE TABLE older_notices () INHERITS (notices)")
    assert refusal(connection).startswith("other tables inherit from")


def test_a_pointer_column_with_a_length_is_refused(connection: psycopg.Connection) -> None:
    connection.execute(NOTICES)
    connection.execute("ALTER TABLE notices ADD COLUMN payload_storage_status varchar(10)")
    assert refusal(connection).startswith("payload_storage_status is character varying(10)")
    connection.execute("ALTER TABLE notices ALTER payload_storage_status TYPE varchar")
    assert list(plan_table(connection, inspect_table(connection, configured(), "public"), STORE_URL))
