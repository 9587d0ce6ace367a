"""`pending_queue_sensor`: watches the queue, adds new tenants as partitions, asks for runs where rows wait too long."""

from dagster import (
    AddDynamicPartitionsRequest,
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from offload_pipeline.config import Config
from offload_pipeline.defs.offload.jobs import OFFLOAD_JOB
from offload_pipeline.defs.offload.requests import QueueLook, look_at_queue, run_requests
from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS
from offload_pipeline.defs.resources import PipelineResource

INTERVAL_SECONDS = 30


def offload_sensors(config: Config) -> list[SensorDefinition]:
    """The queue's sensor; off until switched on in the UI or by `offload.sensor: running`."""
    is_on = config.offload.sensor == "running"

    @sensor(
        job_name=OFFLOAD_JOB, minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=DefaultSensorStatus.RUNNING if is_on else DefaultSensorStatus.STOPPED,
    )  # fmt: skip
    def pending_queue_sensor(context: SensorEvaluationContext, pipeline: PipelineResource) -> SensorResult:
        """Partitions with a row that waits longer than `max_age_minutes`, or `min_pending` rows; oldest first.

        Rows wait to be copied, or, copied by a launch that ended there, to be verified and released.
        """
        look = look_at_queue(pipeline.pipeline)
        known = set(context.instance.get_dynamic_partitions(TENANT_PARTITIONS))
        new = [key for key in look.tenant_keys if key not in known]
        due = [one for one in look.pending if one.is_due(config.offload)]
        requests = run_requests(context.instance, due, config.offload.max_runs_per_tick)
        reason = _reason(look, len(due))
        if look.not_installed:
            reason += f"; not installed: {', '.join(look.not_installed)} (run: offload install)"
            context.log.warning(reason)
        return SensorResult(
            run_requests=requests,
            skip_reason=None if requests else SkipReason(reason),
            dynamic_partitions_requests=[AddDynamicPartitionsRequest(TENANT_PARTITIONS, new)] if new else [],
        )

    return [pending_queue_sensor]


def _reason(look: QueueLook, due: int) -> str:
    """Why nothing is asked for."""
    copied = sum(one.rows_copied for one in look.pending)
    waiting = f"{sum(one.rows for one in look.pending) - copied:,} rows to copy, {copied:,} to verify and release"
    if not due:
        return f"{waiting}; no partition is due"
    return f"{waiting}; due: {due:,}, a run is under way for each"
