"""Retention launched alone."""

from dagster import AssetSelection, define_asset_job
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,  # define_asset_job's type
)

GC_JOB = "gc_job"
EXPIRY_JOB = "expiry_job"


def retention_jobs() -> list[UnresolvedAssetJobDefinition]:
    """`gc_job` looks for objects that no row names, `expiry_job` for payloads past their retention."""
    return [
        define_asset_job(
            GC_JOB,
            AssetSelection.assets("orphaned_objects"),
            description="Look for objects that no row names; delete them where retention.delete is true.",
        ),
        define_asset_job(
            EXPIRY_JOB,
            AssetSelection.assets("expired_payloads"),
            description="Look for payloads past object_retention; give them up where retention.delete is true.",
        ),
    ]
