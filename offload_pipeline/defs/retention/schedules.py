"""Once a day. Off until switched on, and reports until `retention.delete` is switched on as well."""

from dagster import ScheduleDefinition

from offload_pipeline.defs.retention.jobs import EXPIRY_JOB, GC_JOB


def retention_schedules() -> list[ScheduleDefinition]:
    """Expiry first: what it lists, garbage collection leaves alone."""
    return [
        ScheduleDefinition(
            name="daily_expiry", cron_schedule="17 2 * * *", job_name=EXPIRY_JOB,
            description="Payloads past object_retention, and their objects past the grace.",
        ),
        ScheduleDefinition(
            name="daily_gc", cron_schedule="17 3 * * *", job_name=GC_JOB, description="Objects that no row names."
        ),
    ]  # fmt: skip
