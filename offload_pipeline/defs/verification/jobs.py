"""Verification launched alone."""

from dagster import AssetKey, AssetSelection, define_asset_job
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,  # define_asset_job's type
)

from offload_pipeline.config import Config
from offload_pipeline.defs.partitions import table_tenant_partitions


def verification_jobs(config: Config) -> list[UnresolvedAssetJobDefinition]:
    """`verification_job` runs the gate of one partition without copying or releasing."""
    selection = AssetSelection.checks_for_assets(AssetKey("payload_objects"))
    # A job of checks alone has no partitions of its own in Dagster 1.13: none could be chosen in the UI.
    partitions = table_tenant_partitions(config)
    return [
        define_asset_job("verification_job", selection, description="Verify one partition.", partitions_def=partitions)
    ]
