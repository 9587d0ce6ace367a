"""The jobs operators and sensors launch, one partition a run."""

from dagster import AssetSelection, define_asset_job
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,  # define_asset_job's type
)

OFFLOAD_JOB = "offload_job"


def offload_jobs() -> list[UnresolvedAssetJobDefinition]:
    """`offload_job` copies, verifies and releases; `release_job` and `pending_job` do only their part."""
    return [
        define_asset_job(
            OFFLOAD_JOB,
            AssetSelection.assets("pending_payloads", "payload_objects", "released_payloads"),
            description="Copy, verify, release one partition.",
        ),
        define_asset_job(
            "release_job",
            AssetSelection.assets("released_payloads"),
            description="Release what verification has already passed.",
        ),
        define_asset_job("pending_job", AssetSelection.assets("pending_payloads"), description="Measure the queue."),
    ]
