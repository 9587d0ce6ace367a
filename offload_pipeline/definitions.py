"""Composition of all concerns. Loading reads offload.yaml and nothing else: no database, no network."""

import warnings

from dagster import Definitions, PreviewWarning, in_process_executor

from offload_pipeline.config import Config, load_config
from offload_pipeline.defs.io_managers import GzippedPayloadIOManager
from offload_pipeline.defs.offload.assets import IO_MANAGER, offload_assets
from offload_pipeline.defs.offload.jobs import offload_jobs
from offload_pipeline.defs.offload.plan import plan_assets
from offload_pipeline.defs.offload.restore import restore_jobs
from offload_pipeline.defs.offload.schedules import offload_schedules
from offload_pipeline.defs.offload.sensors import offload_sensors
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline.defs.retention.assets import retention_assets
from offload_pipeline.defs.retention.jobs import retention_jobs
from offload_pipeline.defs.retention.schedules import retention_schedules
from offload_pipeline.defs.verification.assets import report_checks, verification_assets
from offload_pipeline.defs.verification.checks import verification_checks
from offload_pipeline.defs.verification.jobs import verification_jobs
from offload_pipeline.defs.verification.schedules import verification_schedules


def build_definitions(config: Config) -> Definitions:
    """Everything Dagster shows, for the tables of one configuration."""
    pipeline = PipelineResource()
    with warnings.catch_warnings():
        # Partitioned checks are a preview in Dagster 1.13; its version is pinned.
        warnings.simplefilter("ignore", PreviewWarning)
        assets = [*offload_assets(config), *plan_assets()]
        checks = verification_checks(config)
    return Definitions(
        assets=[*assets, *verification_assets(), *retention_assets(config)],
        asset_checks=[*checks, *report_checks(config)],
        jobs=[*offload_jobs(), *restore_jobs(config), *verification_jobs(), *retention_jobs()],
        sensors=offload_sensors(config),
        schedules=[*offload_schedules(config), *verification_schedules(), *retention_schedules()],
        resources={"pipeline": pipeline, IO_MANAGER: GzippedPayloadIOManager(resource=pipeline)},
        executor=in_process_executor,
    )


defs = build_definitions(load_config())
