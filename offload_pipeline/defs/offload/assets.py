"""`pending_payloads` → `payload_objects` → `released_payloads`, each per table × tenant."""

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    Backoff,
    Config,
    Jitter,
    MaterializeResult,
    RetryPolicy,
    asset,
)
from pydantic import Field

from offload_pipeline.config import Config as OffloadYaml
from offload_pipeline.defs.metadata import pending_metadata, release_metadata
from offload_pipeline.defs.partition_keys import table_tenant_partitions
from offload_pipeline.defs.resources import PipelineResource, no_retry_of_permanent_errors
from offload_pipeline.offload.claims import Batches

GROUP = "offload"
IO_MANAGER = "gzipped_payloads"
POOL = "offload"
# A warning in the asset itself, which looks before the copier has emptied the queue.
QUEUE_IS_SHORT = "queue_is_short"
# A store or database that comes back within minutes costs nobody a look; longer outages are the sensor's to repeat.
RETRY = RetryPolicy(max_retries=3, delay=20, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS)
# No asset has a backfill policy: one partition per run is what Dagster does without. Under multi_run(1) the run of one
# partition is tagged as a range, its checks are recorded without a partition, and the sensor cannot see it in flight.


class CopyConfig(Config):
    """What a launch may choose: whether rows older than the trigger are scanned too, and from where."""

    unseen: bool = Field(True, description="Also scan the rows that are older than the trigger.")  # noqa: FBT003 - Pydantic's form
    resume: bool = Field(True, description="Start the scan behind the checkpoint of an earlier one.")  # noqa: FBT003 - Pydantic's form
    batch_rows: int | None = Field(None, ge=1, le=1000, description="Rows per batch; the configured number if not set.")


def offload_assets(yaml: OffloadYaml) -> list[AssetsDefinition]:
    """The three assets for the tables of this configuration."""
    partitions = table_tenant_partitions(yaml)

    @asset(
        check_specs=[AssetCheckSpec(QUEUE_IS_SHORT, asset="pending_payloads", partitions_def=partitions,
                                    description=f"Warns above {yaml.offload.warn_pending} pending rows.")],
        partitions_def=partitions, group_name=GROUP, kinds={"postgres"},
    )  # fmt: skip
    def pending_payloads(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult:  # type: ignore[type-arg]  # Dagster knows only the bare class beside checks
        """What waits to be moved: rows, bytes, and the age of the oldest."""
        metadata = pending_metadata(pipeline.pending(context.partition_key))
        is_short = int(str(metadata["rows"])) <= yaml.offload.warn_pending
        check = AssetCheckResult(
            check_name=QUEUE_IS_SHORT, passed=is_short, severity=AssetCheckSeverity.WARN, metadata=metadata
        )
        return MaterializeResult(metadata=metadata, check_results=[check])

    @asset(
        deps=[pending_payloads], partitions_def=partitions, group_name=GROUP,
        io_manager_key=IO_MANAGER, retry_policy=RETRY, pool=POOL, kinds={"postgres", "s3", "gzip"},
    )  # fmt: skip
    def payload_objects(
        context: AssetExecutionContext, config: CopyConfig, pipeline: PipelineResource
    ) -> list[Batches]:
        """Payloads as gzipped objects, each read back after it was stored; the rows keep theirs until released."""
        return [
            batches
            for partition in pipeline.partitions(context.partition_key)
            for batches in pipeline.pipeline.batches(
                partition, batch_rows=config.batch_rows, unseen=config.unseen, resume=config.resume
            )
        ]

    @asset(
        deps=[payload_objects], partitions_def=partitions, group_name=GROUP,
        retry_policy=RETRY, pool=POOL, kinds={"postgres"},
    )  # fmt: skip
    def released_payloads(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult[None]:
        """Rows freed of payloads that verification has passed; launched alone it frees no more than that."""
        with no_retry_of_permanent_errors():
            results = [
                pipeline.pipeline.release(partition, context.run.run_id)
                for partition in pipeline.partitions(context.partition_key)
            ]
        return MaterializeResult(metadata=release_metadata(results))

    return [pending_payloads, payload_objects, released_payloads]
