"""Every five minutes whatever waits, for those who prefer a clock to a sensor. Off until switched on."""

from collections.abc import Sequence

from dagster import RunRequest, ScheduleDefinition, ScheduleEvaluationContext, schedule

from offload_pipeline.config import Config
from offload_pipeline.defs.offload.jobs import OFFLOAD_JOB
from offload_pipeline.defs.offload.requests import look_at_queue, run_requests
from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS
from offload_pipeline.defs.resources import PipelineResource


def offload_schedules(config: Config) -> list[ScheduleDefinition]:
    """The five-minute schedule."""

    @schedule(cron_schedule="*/5 * * * *", job_name=OFFLOAD_JOB)
    def every_five_minutes(context: ScheduleEvaluationContext, pipeline: PipelineResource) -> Sequence[RunRequest]:
        """Asks for every partition with rows to copy or to release, oldest first, as many as a sensor tick would."""
        look = look_at_queue(pipeline.pipeline)
        context.instance.add_dynamic_partitions(TENANT_PARTITIONS, look.tenant_keys)
        return run_requests(context.instance, look.pending, config.offload.max_runs_per_tick)

    return [every_five_minutes]
