"""`pending_payloads` → `payload_objects` → `released_payloads`, each per table × tenant."""

from collections.abc import Iterator, Mapping
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetObservation,
    AssetsDefinition,
    MaterializeResult,
    Output,
    asset,
)
from pydantic import Field

from offload_pipeline.config import Config as OffloadYaml
from offload_pipeline.defs import retries
from offload_pipeline.defs.metadata import Metadata, dry_run_metadata, pending_metadata, release_metadata
from offload_pipeline.defs.partition_keys import table_tenant_partitions
from offload_pipeline.defs.resources import PipelineResource, log_pauses
from offload_pipeline.defs.retries import LaunchConfig, no_retry_of_permanent_errors
from offload_pipeline.offload.ahead import DryRun
from offload_pipeline.offload.claims import Batches, Partition
from offload_pipeline.offload.ending import with_ending

GROUP = "offload"
IO_MANAGER = "gzipped_payloads"
POOL = "offload"
# A warning in the asset itself, which looks before the copier has emptied the queue.
QUEUE_IS_SHORT = "queue_is_short"
# No asset has a backfill policy: one partition per run is what Dagster does without. Under multi_run(1) the run of one
# partition is tagged as a range, its checks are recorded without a partition, and the sensor cannot see it in flight.


class CopyConfig(LaunchConfig):
    """What a launch may choose, as `offload backfill` may; `null_after_upload` holds for its release step as well."""

    unseen: bool = Field(True, description="Also scan the rows that are older than the trigger.")  # noqa: FBT003 - Pydantic's form
    resume: bool = Field(True, description="Start the scan behind the checkpoint of an earlier one.")  # noqa: FBT003 - Pydantic's form
    batch_rows: int | None = Field(None, ge=1, le=1000, description="Rows per batch; the configured number if not set.")
    dry_run: bool = Field(False, description="Only forecast: nothing is written, and no later step runs.")  # noqa: FBT003 - Pydantic's form
    null_after_upload: bool | None = Field(
        None, description="Whether verified payloads are cleared in the row; as after_copy says if not set."
    )
    include_restored: bool = Field(False, description="Move restored rows again, too.")  # noqa: FBT003 - Pydantic's form


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

    # Without an output, after a dry run, Dagster counts nothing as materialized, and skips the check and the release.
    @asset(
        deps=[pending_payloads], partitions_def=partitions, group_name=GROUP, output_required=False,
        io_manager_key=IO_MANAGER, retry_policy=retries.RETRY, pool=POOL, kinds={"postgres", "s3", "gzip"},
    )  # fmt: skip
    def payload_objects(
        context: AssetExecutionContext, config: CopyConfig, pipeline: PipelineResource
    ) -> Iterator[Output[list[Batches]]]:
        """Payloads as gzipped objects, each read back after it was stored; the rows keep theirs until released."""
        chosen = _partitions(context, pipeline, config.null_after_upload)
        if config.dry_run:
            metadata = _dry_run(pipeline, chosen, config)
            context.log_event(AssetObservation(context.asset_key, partition=context.partition_key, metadata=metadata))
            return
        if config.include_restored:
            _lift_holds(context, pipeline, chosen)
        yield Output([
            batches
            for partition in chosen
            for batches in pipeline.pipeline.batches(
                partition, batch_rows=config.batch_rows, unseen=config.unseen, resume=config.resume
            )
        ])  # fmt: skip

    @asset(
        deps=[payload_objects], partitions_def=partitions, group_name=GROUP,
        retry_policy=retries.RETRY, pool=POOL, kinds={"postgres"},
    )  # fmt: skip
    def released_payloads(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult[None]:
        """Rows freed of payloads that verification has passed; launched alone it frees no more than that."""
        chosen = _partitions(context, pipeline, _null_after_upload(context.run.run_config))
        with no_retry_of_permanent_errors():
            results = [
                pipeline.pipeline.release(partition, context.run.run_id, announce=log_pauses(context.log))
                for partition in chosen
            ]
        return MaterializeResult(metadata=release_metadata(results))

    return [pending_payloads, payload_objects, released_payloads]


def _partitions(
    context: AssetExecutionContext, pipeline: PipelineResource, null_after_upload: bool | None
) -> list[Partition]:
    found = pipeline.partitions(context.partition_key)
    with no_retry_of_permanent_errors():
        return [with_ending(partition, null_after_upload=null_after_upload) for partition in found]


def _lift_holds(context: AssetExecutionContext, pipeline: PipelineResource, partitions: list[Partition]) -> None:
    with no_retry_of_permanent_errors():
        lifted = [pipeline.pipeline.lift_holds(partition, context.run.run_id) for partition in partitions]
    context.log.info(f"restored rows that move again: {sum(one.rows for one in lifted)}")


def _null_after_upload(run_config: Mapping[str, Any]) -> bool | None:
    """What the launch chose for the copy: it is said in one place and holds for the whole run."""
    copying = run_config.get("ops", {}).get("payload_objects", {}).get("config") or {}
    return CopyConfig(**copying).null_after_upload


def _dry_run(pipeline: PipelineResource, partitions: list[Partition], config: CopyConfig) -> Metadata:
    found = DryRun()
    with no_retry_of_permanent_errors():
        for partition in partitions:
            found += pipeline.pipeline.dry_run(partition, unseen=config.unseen, resume=config.resume)
        if not config.include_restored:
            return dry_run_metadata(found)
        held = [pipeline.pipeline.held(partition) for partition in partitions]
    of_held = {"held_rows": sum(rows for rows, _ in held), "held_bytes": sum(size for _, size in held)}
    return {**dry_run_metadata(found), **of_held}
