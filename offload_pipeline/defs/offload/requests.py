"""From the pending queue to run requests: which partitions are due, oldest first, each at most once at a time."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dagster import DagsterInstance, DagsterRunStatus, RunRequest, RunsFilter

from offload_pipeline.config import OffloadConfig
from offload_pipeline.defs.offload.jobs import OFFLOAD_JOB
from offload_pipeline.defs.partition_keys import key_of
from offload_pipeline.offload.queue import unreleased_by_tenant
from offload_pipeline.offload.tenants import partition_key
from offload_pipeline.pipeline import Pipeline

# Dagster remembers a run_key for ever. When a run left the queue as it was, it is asked for again after this long.
ASK_AGAIN_SECONDS = 15 * 60
# One look finds the running partitions; more runs than this are not in flight on one installation.
MOST_RUNS_IN_FLIGHT = 1000
# Scanning rows older than the trigger is an operator's decision: a backfill launched in the UI does it.
QUEUE_ONLY = {"ops": {"payload_objects": {"config": {"unseen": False}}}}
_UNFINISHED = [
    DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]  # fmt: skip


@dataclass
class PendingPartition:
    """What waits in one Dagster partition, a tenant's rows or a bucket's; `rows_copied` of them only to be released."""

    table: str
    tenant_key: str
    rows: int = 0
    rows_copied: int = 0
    oldest: datetime | None = None
    age_seconds: float = 0.0

    def is_due(self, config: OffloadConfig) -> bool:
        """Old enough, or enough rows; a table without `created_at` has no age and counts as old."""
        is_old = self.oldest is None or self.age_seconds >= config.max_age_minutes * 60
        return is_old or self.rows >= config.min_pending

    def request(self, now: float) -> RunRequest:
        """The run_key holds table, tenant and the queue's high-water mark."""
        mark = f"{self.rows}@{self.oldest.isoformat() if self.oldest else '-'}"
        run_key = f"{self.table}|{self.tenant_key}|{mark}|{int(now // ASK_AGAIN_SECONDS)}"
        key = key_of(self.table, self.tenant_key)
        return RunRequest(run_key=run_key, run_config=QUEUE_ONLY, job_name=OFFLOAD_JOB, partition_key=key)


@dataclass(frozen=True)
class QueueLook:
    """One look at every table: all tenants' partition keys, and the partitions with rows to copy or to release."""

    tenant_keys: Sequence[str]
    pending: Sequence[PendingPartition]
    not_installed: Sequence[str]


def look_at_queue(pipeline: Pipeline) -> QueueLook:
    """Reads the queues of all tables; tenants known from earlier work are listed even when nothing waits."""
    buckets = pipeline.config.tenant_buckets
    tenant_keys: set[str] = set()
    pending: dict[tuple[str, str], PendingPartition] = {}
    with pipeline.connect() as connection:
        found = pipeline.inspect_all(connection)
        for table in [table for table in found if table.is_active]:
            queue = pipeline.pending(connection, table)
            tenant_keys.update(partition_key(tenant, buckets) for tenant in pipeline.tenants(connection, table, queue))
            max_attempts = pipeline.config.offload.max_attempts
            unreleased = unreleased_by_tenant(connection, table, max_attempts)
            for waiting, is_copied in [(one, False) for one in queue] + [(one, True) for one in unreleased]:
                if waiting.tenant is None:
                    continue
                key = partition_key(waiting.tenant, buckets)
                one = pending.setdefault((table.name, key), PendingPartition(table.name, key))
                one.rows += waiting.rows
                one.rows_copied += waiting.rows if is_copied else 0
                if waiting.age_seconds() >= one.age_seconds:
                    one.oldest, one.age_seconds = waiting.oldest, waiting.age_seconds()
    return QueueLook(
        tenant_keys=sorted(tenant_keys),
        pending=sorted(pending.values(), key=lambda one: (-one.age_seconds, -one.rows)),
        not_installed=[table.name for table in found if not table.is_active],
    )


def run_requests(
    instance: DagsterInstance, partitions: Iterable[PendingPartition], most: int, now: float | None = None
) -> list[RunRequest]:
    """Requests for the first `most` partitions that no unfinished run works on."""
    in_flight = {
        run.tags.get("dagster/partition")
        for run in instance.get_runs(RunsFilter(statuses=_UNFINISHED), limit=MOST_RUNS_IN_FLIGHT)
    }
    free = [one for one in partitions if key_of(one.table, one.tenant_key) not in in_flight]
    return [one.request(time.time() if now is None else now) for one in free[:most]]
