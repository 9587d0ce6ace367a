"""`offload uninstall`: switching off, from the first refusal to the table as it was."""

import psycopg

from offload_pipeline.config import TableConfig
from offload_pipeline.install.installer import take_install_lock
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table, row_hashes, statuses

PAYLOADS = [large_payload(1000, seed) for seed in range(3)]
MISSING = "the size trigger is missing; take the table out of offload.yaml, or run: offload install"


def test_switching_off_and_on_again_loses_nothing(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    before = row_hashes(connection, notices)
    offload("drain")

    refused = offload("uninstall", "--table", "notices")
    assert refused.code == 2
    assert refused.complaint == (
        "offload: notices: 3 payloads are in object storage alone; run: offload restore --table notices"
    )
    assert offload("restore", "--table", "notices").code == 0
    answer = offload("uninstall", "--table", "notices")
    assert answer.code == 0
    assert answer.lines[:3] == [
        "removed notices: triggers and functions",
        "removed notices: queued and copied rows",
        "removed notices: gates and checkpoints",
    ]
    assert offload("uninstall").lines == ["nothing to do: nothing is installed"]
    assert row_hashes(connection, notices) == before

    off = offload("drain")
    assert off.code == 2
    assert off.complaint == f"offload: notices: {MISSING} --table notices"
    assert offload("status").lines[-1] == "notices: not installed; run: offload install --table notices"
    assert offload("doctor").code == 1

    assert offload("install").code == 0
    assert offload("doctor").code == 0
    insert_payloads(connection, notices, PAYLOADS)
    assert offload("backfill", "--table", "notices", "--tenant", "acme", "--include-restored").code == 0
    assert set(statuses(connection, notices).values()) == {"in_storage"}
    assert offload("verify", "--full").code == 0


def test_a_dry_run_prints_sql_and_runs_none_of_it(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    answer = offload("uninstall", "--dry-run")
    assert (answer.code, answer.stderr) == (0, "")
    assert "DROP TRIGGER IF EXISTS" in answer.stdout.decode()
    assert "DROP COLUMN" not in answer.stdout.decode()
    assert offload("install").lines == ["nothing to do: everything is installed as configured"]
    script = offload("uninstall", "--dry-run", "--drop-columns", "--json").document
    assert script["dry_run"] is True
    for step in script["steps"]:
        connection.execute(step["sql"])
    assert offload("uninstall", "--dry-run", "--drop-columns").lines == ["-- nothing to do: nothing is installed"]


def test_one_table_that_cannot_be_switched_off_stops_all_before_the_first_step(
    offload: Command, connection: psycopg.Connection
) -> None:
    tables = [
        make_table(connection, threshold_bytes=0),
        make_table(connection, name="mails", relation="mails", threshold_bytes=0),
    ]
    offload.configure(*tables)
    offload("install")
    insert_payloads(connection, tables[1], PAYLOADS)
    offload("drain")
    answer = offload("uninstall")
    assert answer.code == 2
    assert "offload restore --table mails" in answer.complaint
    assert offload("install").lines == ["nothing to do: everything is installed as configured"]
    assert offload("uninstall", "--table", "notices").code == 0


def test_an_uninstall_beside_an_install_is_refused(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    take_install_lock(connection)
    answer = offload("uninstall")
    assert answer.code == 2
    assert "another `offload install` is running" in answer.complaint
    assert offload("uninstall", "--dry-run").code == 0


def test_a_trigger_that_is_missing_stops_what_moves_and_nothing_that_reads(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    (key,) = insert_payloads(connection, notices, PAYLOADS[:1])
    offload("drain")
    connection.execute("DROP TRIGGER zz_payload_offload_update ON notices")
    for command in (["drain"], ["release"], ["backfill", "--table", "notices", "--tenant", "acme"], ["restore"]):
        assert MISSING in offload(*command).complaint
    assert offload("get", "notices", str(key)).stdout.decode() == PAYLOADS[0]
    assert offload("install").code == offload("restore").code == 0


def test_with_the_guard_disabled_nothing_moves_until_install_enables_it(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    (key,) = insert_payloads(connection, notices, PAYLOADS[:1])
    offload("drain")
    said = "notices: the size trigger is disabled, so nothing watches over freed payloads; to enable it, run: offload "
    for mode in ("DISABLE TRIGGER USER", "ENABLE REPLICA TRIGGER zz_payload_offload_update"):
        connection.execute(f"ALTER TABLE notices {mode}".encode())
        for command in (["drain"], ["release"], ["backfill", "--table", "notices", "--tenant", "acme"], ["restore"]):
            answer = offload(*command)
            assert (answer.code, answer.stdout) == (2, b"")
            assert answer.complaint == f"offload: {said}install --table notices"
        assert offload("get", "notices", str(key)).stdout.decode() == PAYLOADS[0]
        assert offload("install", "--dry-run").stdout.decode().count("ENABLE TRIGGER") == (4 if "USER" in mode else 1)
        assert offload("install").code == 0
        assert offload("install").lines == ["nothing to do: everything is installed as configured"]
    assert offload("doctor").code == offload("restore").code == 0
