"""`objects_are_sound` gates release: in the run as a blocking check, outside it through `verified_through`."""

from dagster import AssetCheckExecutionContext, AssetCheckResult, AssetChecksDefinition, AssetCheckSeverity, asset_check

from offload_pipeline.config import Config
from offload_pipeline.defs.metadata import verification_metadata
from offload_pipeline.defs.offload.assets import POOL, RETRY
from offload_pipeline.defs.partition_keys import table_tenant_partitions
from offload_pipeline.defs.resources import PipelineResource, no_retry_of_permanent_errors


def verification_checks(config: Config) -> list[AssetChecksDefinition]:
    """The check of the stored payloads."""

    @asset_check(
        asset="payload_objects",
        partitions_def=table_tenant_partitions(config),
        blocking=True,
        pool=POOL,
        retry_policy=RETRY,
    )
    def objects_are_sound(context: AssetCheckExecutionContext, pipeline: PipelineResource) -> AssetCheckResult:
        """Every new object is there and whole, and a sample, read and hashed again, is what the rows hold."""
        with no_retry_of_permanent_errors():
            results = [
                pipeline.pipeline.verify(partition, context.run.run_id)
                for partition in pipeline.partitions(context.partition_key)
            ]
        return AssetCheckResult(
            passed=all(result.passed for result in results),
            severity=AssetCheckSeverity.ERROR,
            metadata=verification_metadata(results),
        )

    return [objects_are_sound]
