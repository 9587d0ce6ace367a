"""`GzippedPayloadIOManager`: stores and records the claimed batches of a lazy stream; gives lazy readers back."""

from collections.abc import Sequence

from dagster import ConfigurableIOManager, InputContext, OutputContext, ResourceDependency

from offload_pipeline.defs.metadata import copy_metadata
from offload_pipeline.defs.resources import PipelineResource, log_pauses
from offload_pipeline.defs.retries import fail_if_stopped, no_retry_of_permanent_errors
from offload_pipeline.offload.claims import Batches
from offload_pipeline.offload.copier import CopyOptions, copy_all
from offload_pipeline.offload.stored import StoredPayloads


class GzippedPayloadIOManager(ConfigurableIOManager):
    """Stores each payload as one gzip member under its own key, and counts as written only what was read back."""

    resource: ResourceDependency[PipelineResource]

    def handle_output(self, context: OutputContext, obj: Sequence[Batches]) -> None:
        """Drains the streams. A row that fails is recorded and does not fail the run; a store that fails does."""
        pipeline = self.resource.pipeline
        options = CopyOptions.of(pipeline.config.offload)
        with no_retry_of_permanent_errors():
            if obj:
                pipeline.store.check()
            pressure = pipeline.pressure(obj[0].partition.table, log_pauses(context.log)) if obj else None
            result = copy_all(obj, pipeline.store, options, context.run_id, pressure=pressure)
        context.add_output_metadata(copy_metadata(result))
        fail_if_stopped(result.stopped_by)

    def load_input(self, context: InputContext) -> list[StoredPayloads]:
        """One lazy, hash-checked reader per tenant of each partition that the asset downstream asks for."""
        pipeline = self.resource.pipeline
        partitions = [found for key in context.asset_partition_keys for found in self.resource.partitions(key)]
        return [StoredPayloads(pipeline.database, pipeline.store, partition) for partition in partitions]
