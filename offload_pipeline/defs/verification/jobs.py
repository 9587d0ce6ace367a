"""Verification launched alone."""

from dagster import AssetKey, AssetSelection, define_asset_job
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,  # define_asset_job's type
)


def verification_jobs() -> list[UnresolvedAssetJobDefinition]:
    """`verification_job` runs the gate of one partition without copying or releasing."""
    selection = AssetSelection.checks_for_assets(AssetKey("payload_objects"))
    return [define_asset_job("verification_job", selection, description="Verify one partition.")]
