"""The report on the clock. Off until switched on."""

from dagster import ScheduleDefinition

from offload_pipeline.defs.verification.jobs import REPORT_JOB


def verification_schedules() -> list[ScheduleDefinition]:
    """Every hour: the report is cheap, and its checks are the alarm."""
    return [
        ScheduleDefinition(
            name="every_hour",
            cron_schedule="23 * * * *",
            job_name=REPORT_JOB,
            description="Report on every table, run the smoke checks, and say where failures are open.",
        )
    ]
