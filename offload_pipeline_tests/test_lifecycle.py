"""The whole life of payloads as a state machine: whatever the application and the steps do, and in whatever order."""

# ruff: noqa: S608 - every name in these statements is a constant of this file

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from offload_pipeline.offload.writer import PayloadWriter
from offload_pipeline.retention.erasure import ErasureOptions, erase_tenant
from offload_pipeline.retention.expired_objects import ListedObjects, delete_listed
from offload_pipeline.retention.expiry import ExpiryOptions, expire_partition
from offload_pipeline.retention.garbage import GarbageOptions, collect_garbage
from offload_pipeline.retention.ownership import Scope
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.offload.installation import RUN, Installation, installed

pytestmark = pytest.mark.both_servers

THRESHOLD_BYTES = 100
KEYS = st.integers(1, 5)
TENANTS = st.sampled_from(["acme", "a/b|c"])
# Few, so that A → B → A is common: three large, one of them with numbers that a parser would spoil, one small, none.
CONTENTS = {
    "A": '{"a": "' + "x" * 300 + '"}',
    "B": '{"b": "' + "yz" * 200 + '"}',
    "C": '{"n": [1.10, 1e3, 123456789012345678901234567890], "c": "' + "w" * 150 + '"}',
    "small": '{"small": true}',
    "none": None,
}
CONTENT = st.sampled_from(list(CONTENTS))
NOTHING_WAITS = timedelta(0)
POINTER = ("payload_storage_status", "payload_bytes", "raw_object_key", "payload_hash_sha256", "payload_stored_at")


class Lifecycle(RuleBasedStateMachine):
    """`ledger` is what the application wrote last, by key: the hash of the payload, None for none."""

    installation: Installation
    holder: psycopg.Connection
    writer: PayloadWriter
    hashes: dict[str, str | None]

    def __init__(self) -> None:
        super().__init__()
        self.ledger: dict[int, str | None] = {}
        self.held: tuple[int, str | None] | None = None
        self.read: dict[int, dict[str, Any]] = {}

    @initialize()
    def begin_with_nothing(self) -> None:
        self.holder.rollback()
        for table in ("notices", "payload_offload_failures", "payload_offload_expired"):
            self.installation.connection.execute(f"DELETE FROM {table}")
        for below in self.folder.iterdir():
            shutil.rmtree(below)

    # What the application does.

    @rule(key=KEYS, content=CONTENT, tenant=TENANTS)
    def write(self, key: int, content: str, tenant: str) -> None:
        if self._is_held(key):
            return
        if key not in self.ledger:
            self._execute(
                "INSERT INTO {table} (id, tenant_id, raw_payload) VALUES (%s, %s, %s)", key, tenant, CONTENTS[content]
            )
        elif not self._try("UPDATE {table} SET raw_payload = %s WHERE id = %s", CONTENTS[content], key):
            # NULL over a payload in storage is refused unless the pointer is given up as well.
            assert content == "none"
            return
        self.ledger[key] = self.hashes[content]

    @rule(key=KEYS)
    def drop_payload(self, key: int) -> None:
        if key in self.ledger and not self._is_held(key):
            self._execute("UPDATE {table} SET raw_payload = NULL, raw_object_key = NULL WHERE id = %s", key)
            self.ledger[key] = None

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        if not self._is_held(key) and self.ledger.pop(key, "no row") != "no row":
            self._execute("DELETE FROM {table} WHERE id = %s", key)

    @rule(key=KEYS, to=KEYS)
    def change_key(self, key: int, to: int) -> None:
        if key in self.ledger and to not in self.ledger and not self._is_held(key):
            self._execute("UPDATE {table} SET id = %s WHERE id = %s", to, key)
            self.ledger[to] = self.ledger.pop(key)

    @rule(key=KEYS, tenant=TENANTS)
    def change_tenant(self, key: int, tenant: str) -> None:
        if not self._is_held(key):
            self._execute("UPDATE {table} SET tenant_id = %s WHERE id = %s", tenant, key)

    @rule(key=KEYS)
    def edit_in_place(self, key: int) -> None:
        """An edit that builds on the payload must build on the payload, or be refused."""
        if key not in self.ledger or self._is_held(key):
            return
        before = self._row(key)
        if self._try(
            "UPDATE {table} SET raw_payload = raw_payload || jsonb_build_object('edited', 1) WHERE id = %s", key
        ):
            assert before["payload_storage_status"] != "in_storage"
            self.ledger[key] = self._hash_in_row(key)

    @rule(key=KEYS)
    def save_whole_row_as_read(self, key: int) -> None:
        """As an ORM does; refused where it would write the placeholder over what it stands for, or changes nothing."""
        if key in self.ledger and not self._is_held(key):
            row = self._row(key)
            self._save(key, row)

    @rule(key=KEYS)
    def read_row(self, key: int) -> None:
        """For `save_pointer_as_read`, later."""
        if key in self.ledger:
            self.read[key] = self._row(key)

    @rule(key=KEYS)
    def save_pointer_as_read(self, key: int) -> None:
        """As an ORM does that left the payload out of what it loaded, whatever happened to the row since."""
        if key in self.ledger and key in self.read and not self._is_held(key):
            self._save(key, {name: value for name, value in self.read[key].items() if name in POINTER})

    @rule(key=KEYS, stale=KEYS)
    def copy_row_with_its_pointer(self, key: int, stale: int) -> None:
        """`INSERT … SELECT`, pointer and all."""
        if key not in self.ledger or stale in self.ledger or self._is_held(key):
            return
        status = self._row(key)["payload_storage_status"]
        columns = "tenant_id, raw_payload, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256"
        self._execute(
            f"INSERT INTO {{table}} (id, {columns}) SELECT %s, {columns} FROM {{table}} WHERE id = %s", stale, key
        )
        self.ledger[stale] = self.ledger[key]
        if status == "expired":
            self.ledger[stale] = None if self._row(stale)["raw_payload"] is None else self._hash_in_row(stale)

    @precondition(lambda self: self.held is None)
    @rule(key=KEYS, content=st.sampled_from(["A", "B", "C", "small"]))
    def begin_to_write(self, key: int, content: str) -> None:
        """A transaction that stays open over whatever comes next."""
        if key in self.ledger:
            self.installation.execute(
                "UPDATE {table} SET raw_payload = %s WHERE id = %s", CONTENTS[content], key, connection=self.holder
            )
            self.held = key, self.hashes[content]

    @precondition(lambda self: self.held is not None)
    @rule(commits=st.booleans())
    def end_the_write(self, commits: bool) -> None:
        assert self.held is not None
        key, content_hash = self.held
        self.held = None
        if commits:
            self.holder.commit()
            self.ledger[key] = content_hash
        else:
            self.holder.rollback()

    # What the pipeline does.

    @rule(tenant=TENANTS)
    def copy(self, tenant: str) -> None:
        assert not self.installation.copy(tenant).stopped_by

    @rule(tenant=TENANTS)
    def verify(self, tenant: str) -> None:
        assert self.installation.verify(tenant).passed

    @rule(tenant=TENANTS)
    def release(self, tenant: str) -> None:
        assert not self.installation.release(tenant).rows_failed

    @rule(tenant=TENANTS)
    def drain(self, tenant: str) -> None:
        assert self.installation.drain(tenant).is_sound

    @rule(tenant=TENANTS)
    def restore(self, tenant: str) -> None:
        """Everything comes back, but for what another transaction holds."""
        result = self.installation.pipeline.restore(self.installation.partition(tenant), RUN)
        assert result.is_sound
        self._assert_none_left(tenant, "in_storage", "copied")

    @rule(tenant=TENANTS)
    def lift_holds(self, tenant: str) -> None:
        self.installation.pipeline.lift_holds(self.installation.partition(tenant), RUN)

    @rule(key=KEYS, content=CONTENT, tenant=TENANTS, collects=st.booleans(), commits=st.booleans())
    def write_through_the_writer(
        self,
        key: int,
        content: str,
        tenant: str,
        collects: bool,
        commits: bool,
    ) -> None:
        """A transaction of the application; garbage is collected between the store and the row."""
        if self._is_held(key):
            return
        with psycopg.connect(self.installation.database_url) as connection:
            columns = self.writer.write(connection, "notices", tenant, key, CONTENTS[content])
            if collects:
                self.collect_garbage()
            values = {"id": key, "tenant_id": tenant, **columns}
            names, holes = ", ".join(values), ", ".join(["%s"] * len(values))
            assignments = ", ".join(f"{name} = excluded.{name}" for name in values)
            try:
                self.installation.execute(
                    f"INSERT INTO {{table}} ({names}) VALUES ({holes}) ON CONFLICT (id) DO UPDATE SET {assignments}",
                    *values.values(), connection=connection,
                )  # fmt: skip
            except psycopg.errors.ObjectNotInPrerequisiteState:
                assert content == "none"
                return
            if not commits:
                connection.rollback()
                return
        self.ledger[key] = self.hashes[content]

    @rule(key=KEYS)
    def move_by_hand(self, key: int) -> None:
        """Pointer first; the object is there from before, or never comes: then verification queues the row again."""
        if key in self.ledger and not self._is_held(key):
            status = self._row(key)["payload_storage_status"]
            with contextlib.suppress(psycopg.errors.RaiseException, psycopg.errors.ObjectNotInPrerequisiteState,
                                     psycopg.errors.NoDataFound, psycopg.errors.CheckViolation):  # fmt: skip
                self._execute("SELECT move_payload_to_storage(%s, 'by-hand')", key)
                assert status not in {"in_storage", "expired"}
                self.installation.verify("acme")
                self.installation.verify("a/b|c")

    @precondition(lambda self: self.installation.config.object_retention is not None)
    @rule(tenant=TENANTS)
    def expire(self, tenant: str) -> None:
        stored = {key for key in self.ledger if self._row(key)["payload_storage_status"] == "in_storage"}
        installation = self.installation
        expire_partition(
            installation.pipeline.database,
            installation.partition(tenant),
            ExpiryOptions(delete=True, max_attempts=8),
            RUN,
        )
        self._give_up(stored)

    @rule(tenant=TENANTS)
    def erase(self, tenant: str) -> None:
        stored = {key for key in self.ledger if self._row(key)["payload_storage_status"] == "in_storage"}
        installation = self.installation
        options = ErasureOptions(delete=True, store_threads=4, patience=NOTHING_WAITS)
        erase_tenant(installation.pipeline.database, installation.store, [installation.table], tenant, options, RUN)
        self._give_up(stored)

    @rule()
    def collect_garbage(self) -> None:
        """Without grace, and however much it is; nothing is deleted while an older transaction is open."""
        installation = self.installation
        options = GarbageOptions(
            NOTHING_WAITS, max_orphan_share=1.0, delete=True, store_threads=4, patience=NOTHING_WAITS
        )
        tables = [installation.table]
        result = collect_garbage(
            installation.pipeline.database, installation.store, tables, Scope(tables), options, RUN
        )
        assert not result.stopped_by or self.held

    @rule()
    def delete_expired(self) -> None:
        installation = self.installation
        tables = [installation.table]
        listed = ListedObjects(tables, None, NOTHING_WAITS)
        delete_listed(installation.pipeline.database, installation.store, tables, listed, "expired objects", 4, RUN)

    def teardown(self) -> None:
        """Whatever happened before, in the end every row gets done."""
        self.holder.rollback()
        self.held = None
        for tenant in ("acme", "a/b|c"):
            self.lift_holds(tenant)
            self.drain(tenant)
            if self.installation.config.after_copy != "keep":
                self._assert_none_left(tenant, "pending_move", "copied")
        self.nothing_is_lost()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert_invariant(self.installation.connection, self.installation.store, self.installation.config, self.ledger)

    @property
    def folder(self) -> Path:
        return Path(self.installation.store.url.removeprefix("file://"))

    def _is_held(self, key: int) -> bool:
        return self.held is not None and self.held[0] == key

    def _give_up(self, stored: set[int]) -> None:
        """What has expired is no longer owed; only what was in storage may expire."""
        for key in self.ledger:
            if self._row(key)["payload_storage_status"] == "expired":
                assert key in stored or self.ledger[key] == self._hash_in_row(key)
                self.ledger[key] = self._hash_in_row(key)

    def _assert_none_left(self, tenant: str, *statuses: str) -> None:
        left = self.installation.execute(
            "SELECT id FROM {table} WHERE tenant_id = %s AND payload_storage_status = ANY(%s)", tenant, list(statuses)
        ).fetchall()
        assert all(self._is_held(key) for (key,) in left), f"{left} left behind"

    def _execute(self, statement: str, *values: Any) -> None:
        self.installation.execute(statement, *values)

    def _try(self, statement: str, *values: Any) -> bool:
        """Whether it was done; refused only for the one reason there is."""
        with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
            self._execute(statement, *values)
            return True
        return False

    def _row(self, key: int) -> dict[str, Any]:
        cursor = self.installation.execute(
            "SELECT id, tenant_id, raw_payload::text AS raw_payload, payload_storage_status, payload_bytes, "
            "raw_object_key, payload_hash_sha256, payload_stored_at FROM {table} WHERE id = %s", key
        )  # fmt: skip
        row = cursor.fetchone()
        assert row is not None
        return dict(zip([column.name for column in cursor.description or ()], row, strict=True))

    def _save(self, key: int, row: dict[str, Any]) -> None:
        assignments = ", ".join(f"{name} = %s" for name in row)
        self._try(f"UPDATE {{table}} SET {assignments} WHERE id = %s", *row.values(), key)

    def _hash_in_row(self, key: int) -> str | None:
        found = self.installation.execute(
            "SELECT encode(sha256(convert_to(raw_payload::text, 'UTF8')), 'hex') FROM {table} WHERE id = %s", key
        ).fetchone()
        return found[0] if found else None


@pytest.fixture(params=["clear", "reference", "keep"])
def lifecycle(request: pytest.FixtureRequest, database_url: str, local_store_url: str) -> Iterator[type[Lifecycle]]:
    """The machine on a table of its own."""
    retention = {} if request.param == "keep" else {"object_retention": NOTHING_WAITS}
    options = {"after_copy": request.param, "threshold_bytes": THRESHOLD_BYTES, **retention}
    with (
        installed(database_url, local_store_url, **options) as installation,
        psycopg.connect(database_url) as holder,
        PayloadWriter(installation.pipeline) as writer,
    ):
        installation.connection.execute("SET lock_timeout = '10s'")
        hashes = {name: _hash(installation.connection, content) for name, content in CONTENTS.items()}
        yield type("Lifecycle", (Lifecycle,), {
            "installation": installation, "holder": holder, "writer": writer, "hashes": hashes,
        })  # fmt: skip


def _hash(connection: psycopg.Connection, content: str | None) -> str | None:
    found = connection.execute(
        "SELECT encode(sha256(convert_to(%s::jsonb::text, 'UTF8')), 'hex')", [content]
    ).fetchone()
    return found[0] if found else None


def _settings(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples, stateful_step_count=40, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, Phase.shrink],
        derandomize="OFFLOAD_TEST_RANDOM" not in os.environ,
    )  # fmt: skip


def test_no_order_of_events_loses_a_payload(lifecycle: type[Lifecycle]) -> None:
    run_state_machine_as_test(lifecycle, settings=_settings(8))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_order_of_events_loses_a_payload_in_many_lives(
    lifecycle: type[Lifecycle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other lives each time; a failure prints how to repeat it."""
    monkeypatch.setenv("OFFLOAD_TEST_RANDOM", "1")
    run_state_machine_as_test(lifecycle, settings=_settings(150))
