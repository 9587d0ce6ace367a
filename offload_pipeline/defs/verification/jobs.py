"""Verification launched alone, and the report."""

from dagster import AssetKey, AssetSelection, define_asset_job
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,  # define_asset_job's type
)

REPORT_JOB = "verification_report_job"


def verification_jobs() -> list[UnresolvedAssetJobDefinition]:
    """`verification_job` runs the gate of one partition without copying or releasing; the report is of all."""
    # In Dagster 1.13 a job of checks alone has no partitions to choose from; the measured queue lends it its own.
    selection = AssetSelection.checks_for_assets(AssetKey("payload_objects")) | AssetSelection.assets(
        "pending_payloads"
    )
    return [
        define_asset_job("verification_job", selection, description="Verify one partition, and measure its queue."),
        define_asset_job(
            REPORT_JOB,
            AssetSelection.assets("verification_report"),
            description="Report on every table, run the smoke checks, and fail where failures are open.",
        ),
    ]
