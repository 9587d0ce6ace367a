"""`restore_job`: payloads of one partition back into their rows. No asset: "materialize all" must not undo the work."""

from collections.abc import Sequence

from dagster import JobDefinition, MetadataValue, OpExecutionContext, job, op
from pydantic import Field

from offload_pipeline.config import Config as OffloadYaml
from offload_pipeline.defs import retries
from offload_pipeline.defs.metadata import SHOWN_DAMAGES, Metadata
from offload_pipeline.defs.offload.assets import POOL
from offload_pipeline.defs.partition_keys import split_key, table_tenant_partitions
from offload_pipeline.defs.resources import PipelineResource, log_pauses
from offload_pipeline.defs.retries import LaunchConfig, fail_if_stopped, no_retry_of_permanent_errors
from offload_pipeline.errors import UserError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.restore import RestoreResult

RESTORE_JOB = "restore_job"


class RestoreConfig(LaunchConfig):
    """What a launch may choose: one row instead of the whole partition."""

    primary_key: str | None = Field(None, description="One row, as `offload restore --primary-key` takes it.")


def restore_jobs(yaml: OffloadYaml) -> list[JobDefinition]:
    """The one job, on the partitions of the assets."""

    @op(pool=POOL, retry_policy=retries.RETRY)
    def restore_payloads(context: OpExecutionContext, config: RestoreConfig, pipeline: PipelineResource) -> None:
        """Reads each object, hash-checked, puts the payload back into its row, and holds it there."""
        with no_retry_of_permanent_errors():
            chosen = _rows(pipeline, context.partition_key, config.primary_key)
            results = [
                (one, pipeline.pipeline.restore(one, context.run_id, key=key, announce=log_pauses(context.log)))
                for one, key in chosen
            ]
        context.add_output_metadata(dict(restore_metadata(results)))
        fail_if_stopped(next((result.stopped_by for _, result in results if result.stopped_by), None))

    @job(
        name=RESTORE_JOB,
        partitions_def=table_tenant_partitions(yaml),
        description="Put the payloads of one partition back into their rows, where they stay until written anew.",
    )
    def restore() -> None:
        restore_payloads()

    return [restore]


def _rows(
    pipeline: PipelineResource, partition_key: str, primary_key: str | None
) -> Sequence[tuple[Partition, tuple[str, ...] | None]]:
    partitions = pipeline.partitions(partition_key)
    if primary_key is None:
        return [(partition, None) for partition in partitions]
    partition, key = pipeline.pipeline.row(split_key(partition_key)[0], primary_key)
    if partition.tenant not in {one.tenant for one in partitions}:
        raise UserError(f"the row {primary_key} is one of tenant {partition.tenant!r}; launch that partition")
    return [(partition, key)]


def restore_metadata(found: Sequence[tuple[Partition, RestoreResult]]) -> Metadata:
    """What came back, and what could not."""
    results = [result for _, result in found]
    lines = [
        f"- `{partition.table.key_text(failure.key)}`: {failure.error}"
        for partition, result in found
        for failure in result.failures
    ][:SHOWN_DAMAGES]
    return {
        "rows": sum(result.rows_restored for result in results),
        "payload_bytes": sum(result.payload_bytes for result in results),
        "pointers_dropped": sum(result.pointers_dropped for result in results),
        "rows_left_for_next_pass": sum(result.rows_left for result in results),
        "rows_failed": sum(result.rows_failed for result in results),
        **({"problems": MetadataValue.md("\n".join(lines))} if lines else {}),
    }
