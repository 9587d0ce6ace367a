"""`offload install`: idempotent, one at a time, and a dry run that is the SQL itself."""

import psycopg

from offload_pipeline.config import TableConfig
from offload_pipeline.install.installer import take_install_lock
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table


def bookkeeping_tables(connection: psycopg.Connection) -> int:
    found = connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'payload_offload_%' AND relkind = 'r'")
    row = found.fetchone()
    assert row is not None
    return int(row[0])


def test_a_dry_run_prints_sql_and_runs_none_of_it(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    answer = offload("install", "--dry-run")
    assert answer.code == 0
    assert answer.stderr == ""
    assert "CREATE INDEX CONCURRENTLY" in answer.stdout.decode()
    assert bookkeeping_tables(connection) == 0


def test_what_a_dry_run_prints_is_the_whole_install(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=100)
    offload.configure(table)
    script = offload("install", "--dry-run", "--json").document
    for step in script["steps"]:
        connection.execute(step["sql"])
    assert offload("install", "--dry-run").lines == ["-- nothing to do: everything is installed as configured"]
    insert_payloads(connection, table, [large_payload(500)])
    assert offload("drain").code == 0


def test_a_second_install_does_nothing(offload: Command, notices: TableConfig) -> None:
    answer = offload("install")
    assert answer.code == 0
    assert answer.lines == ["nothing to do: everything is installed as configured"]


def test_install_names_each_step_as_it_is_done(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    assert offload("install").lines[:2] == [
        "installed bookkeeping",
        "installed notices: pointer columns and size trigger",
    ]


def test_json_lists_the_steps_with_their_sql(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    document = offload("install", "--json").document
    assert document["dry_run"] is False
    assert document["steps"][0]["title"] == "bookkeeping"
    assert all(step["sql"] for step in document["steps"])


def test_one_table_is_installed_without_the_others(offload: Command, connection: psycopg.Connection) -> None:
    mails = make_table(connection, name="mails", relation="public.mails")
    offload.configure(make_table(connection), mails)
    assert offload("install", "--table", "mails").code == 0
    status = offload("status", "--json").document
    assert [table["installed"] for table in status["tables"]] == [False, True]


def test_a_table_that_cannot_be_installed_stops_everything_before_the_first_step(
    offload: Command, connection: psycopg.Connection
) -> None:
    mails = make_table(connection, name="mails", relation="public.mails")
    connection.execute("ALTER TABLE mails ALTER raw_payload SET NOT NULL")
    offload.configure(make_table(connection), mails)
    answer = offload("install")
    assert answer.code == 2
    assert "mails: raw_payload is NOT NULL" in answer.complaint
    assert bookkeeping_tables(connection) == 0


def test_a_second_install_at_the_same_time_is_refused(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    take_install_lock(connection)
    answer = offload("install")
    assert answer.code == 2
    assert "another `offload install` is running" in answer.complaint
    assert offload("install", "--dry-run").code == 0
