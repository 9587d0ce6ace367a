"""`orphaned_objects` and `expired_payloads`: reports, until `retention.delete` is switched on in offload.yaml."""

from dagster import AssetExecutionContext, AssetsDefinition, MaterializeResult, asset

from offload_pipeline.config import Config
from offload_pipeline.defs import retries
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline.defs.retention.checks import orphan_share_result, orphan_share_spec
from offload_pipeline.defs.retention.metadata import expiry_metadata, garbage_metadata
from offload_pipeline.defs.retries import fail_if_stopped, no_retry_of_permanent_errors
from offload_pipeline.retention.passes import Retention

GROUP = "retention"
# Two at once would do no harm, only wait for each other.
POOL = "retention"


def retention_assets(config: Config) -> list[AssetsDefinition]:
    """Both look at all tables and tenants in one run: one listing of the store serves them all."""

    @asset(
        check_specs=[orphan_share_spec(config)], group_name=GROUP, retry_policy=retries.RETRY, pool=POOL,
        kinds={"postgres", "s3"},
    )  # fmt: skip
    def orphaned_objects(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult:  # type: ignore[type-arg]  # Dagster knows only the bare class beside checks
        """Objects that no row names and that are older than the grace; deleted where retention.delete is true."""
        delete = pipeline.pipeline.config.retention.delete
        with no_retry_of_permanent_errors():
            result = Retention(pipeline.pipeline).collect_garbage(context.run.run_id, delete=delete)
        fail_if_stopped(result.stopped_by)
        metadata = garbage_metadata(result, delete=delete)
        return MaterializeResult(metadata=metadata, check_results=[orphan_share_result(result)])

    @asset(group_name=GROUP, retry_policy=retries.RETRY, pool=POOL, kinds={"postgres", "s3"})
    def expired_payloads(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult[None]:
        """Payloads past object_retention, and their objects past the grace; given up where retention.delete is true."""
        retention, run_id = Retention(pipeline.pipeline), context.run.run_id
        delete = pipeline.pipeline.config.retention.delete
        with no_retry_of_permanent_errors():
            with pipeline.pipeline.connect() as connection:
                partitions = retention.expirable(connection)
            results = [(one, retention.expire(one, run_id, delete=delete)) for one in partitions]
            listed = retention.delete_expired(run_id, delete=delete)
        fail_if_stopped(listed.stopped_by)
        return MaterializeResult(metadata=expiry_metadata(results, listed, delete=delete))

    return [orphaned_objects, expired_payloads]
