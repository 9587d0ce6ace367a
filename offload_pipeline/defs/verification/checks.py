"""`objects_are_sound` gates release: in the run as a blocking check, outside it through `verified_through`."""

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    asset_check,
)
from pydantic import Field

from offload_pipeline.config import Config as OffloadYaml
from offload_pipeline.defs import retries
from offload_pipeline.defs.metadata import verification_metadata
from offload_pipeline.defs.offload.assets import POOL
from offload_pipeline.defs.partition_keys import table_tenant_partitions
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline.defs.retries import LaunchConfig, no_retry_of_permanent_errors


class VerifyConfig(LaunchConfig):
    """What a launch may choose: as `--full`, `--no-resume` and `--sample`."""

    full: bool = Field(False, description="Read every stored payload again, not a sample.")  # noqa: FBT003 - Pydantic's form
    resume: bool = Field(True, description="A full pass goes on where an unfinished one ended.")  # noqa: FBT003 - Pydantic's form
    sample_rows: int | None = Field(
        None, ge=0, description="Stored payloads to read again; verification.sample_rows if not set."
    )


def verification_checks(yaml: OffloadYaml) -> list[AssetChecksDefinition]:
    """The check of the stored payloads."""

    @asset_check(
        asset="payload_objects",
        partitions_def=table_tenant_partitions(yaml),
        blocking=True,
        pool=POOL,
        retry_policy=retries.RETRY,
    )
    def objects_are_sound(
        context: AssetCheckExecutionContext, config: VerifyConfig, pipeline: PipelineResource
    ) -> AssetCheckResult:
        """Every new object is there and whole, and a sample, read and hashed again, is what the rows hold."""
        with no_retry_of_permanent_errors():
            results = [
                pipeline.pipeline.verify(
                    partition, context.run.run_id,
                    sample_rows=config.sample_rows, full=config.full, resume=config.resume,
                )
                for partition in pipeline.partitions(context.partition_key)
            ]  # fmt: skip
        return AssetCheckResult(
            passed=all(result.passed for result in results),
            severity=AssetCheckSeverity.ERROR,
            metadata=verification_metadata(results),
        )

    return [objects_are_sound]
