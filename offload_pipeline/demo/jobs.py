"""The demo's Dagster runs: `offload_job` on every partition, recorded in the same instance that `offload up` shows."""

from collections.abc import Iterator
from dataclasses import dataclass

from dagster import AssetCheckEvaluation, DagsterInstance

from offload_pipeline.definitions import build_definitions
from offload_pipeline.defs.offload.jobs import OFFLOAD_JOB
from offload_pipeline.defs.offload.requests import PendingPartition, look_at_queue
from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS, key_of
from offload_pipeline.pipeline import Pipeline

# The runs' events are in the instance; the terminal shows the demo's own lines.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class PartitionRun:
    """One run of the job, and what its gate saw."""

    partition: str
    succeeded: bool
    rows_verified: int
    rows_read_whole: int


def pending_partitions(pipeline: Pipeline, instance: DagsterInstance) -> list[PendingPartition]:
    """The partitions with pending rows; their tenants become known to Dagster."""
    look = look_at_queue(pipeline)
    instance.add_dynamic_partitions(TENANT_PARTITIONS, look.tenant_keys)
    return list(look.pending)


def run_partitions(
    pipeline: Pipeline, instance: DagsterInstance, pending: list[PendingPartition]
) -> Iterator[PartitionRun]:
    """Runs the job on one partition after another, in this process."""
    job = build_definitions(pipeline.config).resolve_job_def(OFFLOAD_JOB)
    for one in pending:
        key = key_of(one.table, one.tenant_key)
        result = job.execute_in_process(partition_key=key, instance=instance, run_config=QUIET, raise_on_error=False)
        gates = [found for found in result.get_asset_check_evaluations() if found.check_name == "objects_are_sound"]
        yield PartitionRun(key, result.success, _total(gates, "rows_checked"), _total(gates, "rows_read_whole"))


def _total(evaluations: list[AssetCheckEvaluation], name: str) -> int:
    return sum(int(str(found.metadata[name].value)) for found in evaluations if name in found.metadata)
