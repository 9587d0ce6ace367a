"""What goes by one of our names and is the application's: install refuses it, and uninstall leaves it."""

from collections.abc import Iterator

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline.errors import UserError
from offload_pipeline.install.installer import plan_all
from offload_pipeline.install.uninstaller import carry_out, plan_uninstall_all
from offload_pipeline.pipeline import Pipeline
from offload_pipeline_tests.factories import install, make_pipeline, make_table

TRIGGER_FUNCTION = "LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connected:
        yield connected


@pytest.fixture
def notices(connection: psycopg.Connection) -> TableConfig:
    return make_table(connection)


@pytest.fixture
def pipeline(database_url: str, local_store_url: str, notices: TableConfig) -> Pipeline:
    return make_pipeline(database_url, local_store_url, [notices])


def uninstall(pipeline: Pipeline, *, drop_columns: bool = False) -> None:
    with pipeline.connect() as session:
        for step in plan_uninstall_all(session, pipeline.inspect_all(session), drop_columns=drop_columns):
            carry_out(session, step)


def functions(connection: psycopg.Connection) -> dict[str, str]:
    """Bodies by signature, of all in the schema."""
    return dict(
        connection.execute(
            "SELECT oid::regprocedure::text, coalesce(pg_get_function_sqlbody(oid), prosrc) FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    )


def everything(connection: psycopg.Connection) -> list[tuple[str, ...]]:
    """Relations, columns, triggers and functions of the schema."""
    return connection.execute(
        """
        SELECT 'column', a.attrelid::regclass::text, a.attname::text, ''
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND NOT a.attisdropped
        UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname::text, tgfoid::regproc::text FROM pg_trigger
        UNION ALL SELECT 'function', oid::regprocedure::text, prosrc, coalesce(pg_get_function_sqlbody(oid), '')
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1, 2, 3
        """
    ).fetchall()


@pytest.mark.both_servers
@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (
            "CREATE TABLE archival_log (id bigint, what text)",
            r"^public\.archival_log is there already and not ours \(it has no column action\); rename it, or name "
            r"another database\.schema$",
        ),
        ("CREATE TABLE payload_offload_log (id bigint, logged_at timestamptz, rows bigint)", "has no column action"),
        (
            "CREATE VIEW payload_offload_state AS SELECT 1 AS tenant_id",
            r"payload_offload_state is .*\(it is no table\)",
        ),
        ("CREATE SEQUENCE payload_offload_deleted", r"payload_offload_deleted is .*\(it is no table\)"),
        (
            "CREATE FUNCTION calculate_payload_size(jsonb) RETURNS bigint LANGUAGE sql RETURN 42",
            r"^the function public\.calculate_payload_size\(jsonb\) is there already and not ours; rename or drop it",
        ),
        (
            "CREATE FUNCTION calculate_payload_size(p jsonb) RETURNS int LANGUAGE sql AS 'SELECT 42'",
            r"public\.calculate_payload_size\(jsonb\) is there already",
        ),
        (
            f"CREATE FUNCTION payload_offload_refuse_change() RETURNS trigger {TRIGGER_FUNCTION}",
            r"public\.payload_offload_refuse_change\(\) is there already",
        ),
        (
            f"CREATE FUNCTION notices_payload_offload() RETURNS trigger {TRIGGER_FUNCTION}",
            r"public\.notices_payload_offload\(\) is there already",
        ),
        (
            "CREATE FUNCTION notices_payload_offload_pointer() RETURNS int LANGUAGE sql RETURN 1",
            r"public\.notices_payload_offload_pointer\(\) is there already",
        ),
        (
            "CREATE FUNCTION get_notices_payload(bigint) RETURNS jsonb LANGUAGE sql RETURN '{}'::jsonb",
            r'"get_notices_payload"\(bigint\) is there already and not ours',
        ),
        (
            "CREATE FUNCTION get_notices_payload(bigint) RETURNS int LANGUAGE sql RETURN 1",
            r'"get_notices_payload"\(bigint\) is there already and not ours',
        ),
        (
            "CREATE FUNCTION move_payload_to_storage(bigint, text) RETURNS jsonb LANGUAGE sql RETURN '{}'::jsonb",
            r'"move_payload_to_storage"\(bigint, text\) is there already and not ours',
        ),
        ("CREATE TABLE notices_offload_copied ()", r"public\.notices_offload_copied is there already and not ours"),
    ],
)
def test_what_goes_by_one_of_our_names_is_refused_and_not_touched(
    connection: psycopg.Connection, pipeline: Pipeline, theirs: str, said: str
) -> None:
    connection.execute(theirs.encode())
    before = everything(connection)
    with pipeline.connect() as session, pytest.raises(UserError, match=said):
        plan_all(session, pipeline.inspect_all(session), "public", pipeline.store.url, is_only=True)
    assert everything(connection) == before


@pytest.mark.both_servers
def test_functions_with_other_arguments_are_no_obstacle_and_stay(
    connection: psycopg.Connection, pipeline: Pipeline
) -> None:
    for theirs in ("calculate_payload_size(text)", "get_notices_payload(text)", "notices_payload_offload(int)"):
        connection.execute(f"CREATE FUNCTION {theirs} RETURNS int LANGUAGE sql RETURN 1".encode())
    before = functions(connection)
    install(pipeline)
    uninstall(pipeline)
    assert before.items() <= functions(connection).items()


@pytest.mark.both_servers
@pytest.mark.parametrize("forgotten", ["comments", "triggers", "comments and triggers"])
def test_an_installation_whose_comments_or_triggers_are_gone_is_still_known_for_ours(
    connection: psycopg.Connection, pipeline: Pipeline, forgotten: str
) -> None:
    install(pipeline)
    if "comments" in forgotten:
        connection.execute("COMMENT ON TABLE payload_offload_state IS NULL")
        for name in ("insert", "update", "move", "whole"):
            connection.execute(f"COMMENT ON TRIGGER zz_payload_offload_{name} ON notices IS NULL".encode())
    if "triggers" in forgotten:
        for name in ("insert", "update", "move", "whole"):
            connection.execute(f"DROP TRIGGER zz_payload_offload_{name} ON notices".encode())
    assert install(pipeline) != []
    assert install(pipeline) == []
    uninstall(pipeline)
    left = functions(connection)
    assert set(left) == {"calculate_payload_size(jsonb)", "payload_offload_refuse_change()"}


@pytest.mark.both_servers
def test_uninstall_leaves_functions_that_took_our_names_since(
    connection: psycopg.Connection, pipeline: Pipeline
) -> None:
    install(pipeline)
    connection.execute("DROP FUNCTION get_notices_payload(bigint)")
    connection.execute("CREATE FUNCTION get_notices_payload(bigint) RETURNS int LANGUAGE sql RETURN 1")
    for name in ("insert", "update", "move", "whole"):
        connection.execute(f"DROP TRIGGER zz_payload_offload_{name} ON notices".encode())
    connection.execute("DROP FUNCTION notices_payload_offload()")
    connection.execute(f"CREATE FUNCTION notices_payload_offload() RETURNS trigger {TRIGGER_FUNCTION}".encode())
    uninstall(pipeline)
    assert {"get_notices_payload(bigint)", "notices_payload_offload()"} <= set(functions(connection))


# Names that tables share


@pytest.fixture
def letters(connection: psycopg.Connection, database_url: str, local_store_url: str) -> Pipeline:
    """Another configuration, for another table of the same database."""
    return make_pipeline(
        database_url, local_store_url, [make_table(connection, name="letters", relation="public.letters")]
    )


MOVE = "move_payload_to_storage(bigint,text)"


@pytest.mark.both_servers
def test_the_plain_function_stays_with_the_table_that_had_it_first(
    connection: psycopg.Connection, pipeline: Pipeline, letters: Pipeline
) -> None:
    install(pipeline)
    first = functions(connection)[MOVE]
    install(letters)
    assert functions(connection)[MOVE] == first
    assert install(letters) == install(pipeline) == []
    uninstall(letters)
    assert functions(connection)[MOVE] == first
    uninstall(pipeline)
    assert MOVE not in functions(connection)


@pytest.mark.both_servers
def test_the_plain_function_passes_on_once_its_table_is_uninstalled_or_gone(
    connection: psycopg.Connection, pipeline: Pipeline, letters: Pipeline
) -> None:
    install(pipeline)
    install(letters)
    connection.execute("DROP TABLE notices")
    assert install(letters) == ["letters: functions"]
    assert '"letters"' in functions(connection)[MOVE]
    uninstall(letters)
    assert MOVE not in functions(connection)


def test_the_plain_function_follows_its_table_when_another_joins_the_configuration(
    connection: psycopg.Connection, pipeline: Pipeline, letters: Pipeline, database_url: str, tmp_path: object
) -> None:
    install(pipeline)
    tables = [*pipeline.config.tables, *letters.config.tables]
    both = make_pipeline(database_url, f"file://{tmp_path}/elsewhere", tables)
    install(both)
    assert "/elsewhere" in functions(connection)[MOVE], "it says which store it was installed for"
    uninstall(both)
    assert MOVE not in functions(connection)


def pipelines(connection: psycopg.Connection, database_url: str, store_url: str, *names: str) -> list[Pipeline]:
    """A configuration for each of these tables of one database."""
    tables = (make_table(connection, name=name, relation=f"public.{name}") for name in names)
    return [make_pipeline(database_url, store_url, [table]) for table in tables]


def test_a_table_does_not_take_the_function_that_bears_its_own_name_from_another(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    """`activities` has `get_activity_payload` as well, which is the only one that `activity` could have."""
    activities, activity = pipelines(connection, database_url, local_store_url, "activities", "activity")
    install(activities)
    with pytest.raises(UserError, match=r"^activity: .* is that of the table activities; give the newer one another"):
        install(activity)


def test_activities_take_the_plain_functions_from_nobody_whose_own_they_are(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    """Only `move_payload_to_storage` goes over to `activities`: the other names may be another table's only ones."""
    activity, activities = pipelines(connection, database_url, local_store_url, "activity", "activities")
    install(activity)
    mine = functions(connection)["get_activity_payload(bigint)"]
    install(activities)
    assert functions(connection)["get_activity_payload(bigint)"] == mine
    assert '"activities"' in functions(connection)[MOVE]
    assert install(activity) == install(activities) == []
