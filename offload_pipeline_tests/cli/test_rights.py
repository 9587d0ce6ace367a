"""What the role needs: each command does its work with the documented rights, and names the GRANT without them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.cli.test_doctor import result
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table

# As docs/operations.md has them.
DOCUMENTED = (
    "GRANT SELECT, UPDATE ON notices TO {role}",
    "GRANT SELECT, INSERT, UPDATE ON payload_offload_state, payload_offload_failures TO {role}",
    "GRANT SELECT, INSERT ON payload_offload_log TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON payload_offload_expired, payload_offload_deleted TO {role}",
    "GRANT pg_monitor TO {role}",
)
WORKING = {
    "drain": ["drain"],
    "backfill": ["backfill", "--table", "notices", "--tenant", "acme"],
    "verify": ["verify"],
    "release": ["release"],
    "restore": ["restore"],
    "restore one": ["restore", "--table", "notices", "--primary-key", "1"],
    "expire": ["expire", "--delete"],
    "gc": ["gc", "--delete"],
    "erase": ["gc", "--erase-tenant", "acme", "--delete"],
}
READING = {"status": ["status"], "plan": ["plan"], "get": ["get", "notices", "1"], "gc": ["gc"], "expire": ["expire"]}


@dataclass(frozen=True)
class Worker:
    """A role that owns nothing; `offload` connects as it."""

    name: str
    connection: psycopg.Connection

    def may(self, grants: tuple[str, ...]) -> None:
        for grant in grants:
            self.connection.execute(grant.format(role=self.name).encode())

    def follow(self, mend: str) -> None:
        """What a message says, to the letter."""
        for grant in mend.split("; "):
            assert grant.startswith("GRANT ")
            self.connection.execute(grant.encode())


@pytest.fixture
def worker(offload: Command, connection: psycopg.Connection) -> Iterator[Worker]:
    table = make_table(connection, threshold_bytes=100)
    offload.configure(table)
    assert offload("install").code == 0
    insert_payloads(connection, table, [large_payload(1000, seed) for seed in range(3)])
    role = f"worker_{connection.info.dbname}"
    connection.execute(f"CREATE ROLE {role} LOGIN".encode())
    offload.configure(table, database={"url": offload.database_url.replace("postgres@", f"{role}@")})
    document = json.loads(offload.config_path.read_text())
    document["tables"][0]["object_retention"] = "90 days"
    offload.config_path.write_text(json.dumps(document))
    yield Worker(role, connection)
    connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


@pytest.mark.parametrize("command", WORKING)
def test_a_command_works_with_the_documented_rights(offload: Command, worker: Worker, command: str) -> None:
    worker.may(DOCUMENTED)
    assert offload("drain").code == 0
    worker.connection.execute("UPDATE notices SET payload_stored_at = payload_stored_at - interval '91 days'")
    answer = offload(*WORKING[command])
    assert (answer.code, answer.stderr) == (0, "")


def test_one_after_another_they_work_with_the_documented_rights(offload: Command, worker: Worker) -> None:
    worker.may(DOCUMENTED)
    worker.connection.execute("UPDATE notices SET raw_payload = raw_payload || '{\"again\": 1}'")
    for arguments in (*WORKING.values(), ["backfill", "--table", "notices", "--tenant", "acme", "--include-restored"]):
        answer = offload(*arguments)
        assert (answer.code, answer.stderr) == (0, "")
    assert offload("doctor").code == 0


@pytest.mark.parametrize("command", WORKING)
def test_without_rights_a_command_names_the_grants_which_mend_it(
    offload: Command, worker: Worker, command: str
) -> None:
    worker.connection.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    while (answer := offload(*WORKING[command])).code:
        assert answer.code == 2
        said, _, mend = answer.complaint.partition("; ")
        assert said == f"offload: notices: permission denied to {worker.name}"
        worker.follow(mend)
    assert answer.stderr == "" or "GRANT pg_monitor" in answer.stderr


@pytest.mark.parametrize("command", WORKING)
def test_without_the_right_to_update_a_command_is_a_mistake_and_changes_nothing(
    offload: Command, worker: Worker, command: str
) -> None:
    worker.may((*DOCUMENTED, "REVOKE UPDATE ON notices FROM {role}"))
    answer = offload(*WORKING[command])
    assert answer.code == 2
    assert answer.complaint.endswith(
        f"notices: permission denied to {worker.name}; GRANT UPDATE ON public.notices TO {worker.name}"
    )
    assert worker.connection.execute("SELECT count(*) FROM payload_offload_log").fetchone() == (0,)


@pytest.mark.parametrize("command", READING)
def test_what_only_looks_needs_no_more_than_select(offload: Command, worker: Worker, command: str) -> None:
    worker.may(("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",))
    answer = offload(*READING[command])
    assert (answer.code, answer.stderr) == (0, "")


def test_rights_on_the_columns_in_question_are_enough(offload: Command, worker: Worker) -> None:
    pointer = "payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256, payload_stored_at"
    worker.may((*DOCUMENTED, "REVOKE UPDATE ON notices FROM {role}",
                f"GRANT UPDATE (raw_payload, {pointer}) ON notices TO {{role}}"))  # fmt: skip
    for arguments in (["drain"], ["restore"]):
        answer = offload(*arguments)
        assert (answer.code, answer.stderr) == (0, "")


def test_doctor_finds_rights_that_lack_and_its_mends_work(offload: Command, worker: Worker) -> None:
    answer = offload("doctor", "--json")
    assert answer.code == 1
    for check in ("schema public, rights", "table notices, rights"):
        outcome, mend = result(answer, check)
        assert outcome == "failed"
        assert mend is not None
        worker.follow(mend)
    assert result(answer, "back-pressure") == ("warning", f"GRANT pg_monitor TO {worker.name}")
    worker.follow(f"GRANT pg_monitor TO {worker.name}")
    answer = offload("doctor", "--json")
    assert answer.code == 0
    assert "back-pressure" not in [check["name"] for check in answer.document["checks"]]
    drained = offload("drain")
    assert (drained.code, drained.stderr) == (0, "")


def test_doctor_says_that_schemas_are_closed(offload: Command, worker: Worker) -> None:
    worker.connection.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    answer = offload("doctor", "--json")
    assert answer.code == 1
    for check in ("schema public, rights", "table notices, rights"):
        outcome, mend = result(answer, check)
        assert outcome == "failed"
        assert mend is not None
        assert f"GRANT USAGE ON SCHEMA public TO {worker.name}" in mend


def test_a_right_taken_away_during_the_work_is_a_mistake_too(offload: Command, worker: Worker) -> None:
    """Rights on a column that only a trigger of the application's reads are no business of ours to foresee."""
    worker.may(DOCUMENTED)
    worker.connection.execute("CREATE TABLE audit (id bigint)")
    worker.connection.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NEW; END'"
    )
    worker.connection.execute("CREATE TRIGGER audit AFTER UPDATE ON notices FOR EACH ROW EXECUTE FUNCTION audit()")
    answer = offload("drain")
    assert answer.code == 2
    assert answer.complaint == (
        "offload: notices, tenant 'acme': permission denied for table audit; "
        "grant it (offload doctor names the GRANT), or connect as a role that may"
    )
