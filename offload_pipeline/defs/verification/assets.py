"""`verification_report`: how every table stands, over time; and whether anything failed and nobody has looked."""

from collections.abc import Mapping

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetsDefinition,
    MaterializeResult,
    asset,
    asset_check,
)

from offload_pipeline.config import Config
from offload_pipeline.defs import retries
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline.defs.retries import no_retry_of_permanent_errors
from offload_pipeline.defs.verification.metadata import failures_metadata, report_metadata
from offload_pipeline.verification.smoke import SmokeCheck, run_smoke_check, smoke_checks

GROUP = "verification"
REPORT = "verification_report"
# Enough to find the cause; `offload status` lists more.
SHOWN_FAILURES = 20


def verification_assets() -> list[AssetsDefinition]:
    """The report."""

    @asset(group_name=GROUP, kinds={"postgres"}, retry_policy=retries.RETRY)
    def verification_report(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult[None]:
        """Rows, what is in storage, sizes, failures and gates of every table; reads little of any of them."""
        opened = pipeline.pipeline
        with no_retry_of_permanent_errors(), opened.connect() as connection:
            tables = opened.installed_tables(connection)
            reports = [opened.report(connection, table) for table in tables]
        if missing := {table.name for table in opened.config.tables} - {table.name for table in tables}:
            context.log.warning(f"not installed: {', '.join(sorted(missing))} (run: offload install)")
        return MaterializeResult(metadata=report_metadata(reports))

    return [verification_report]


def report_checks(config: Config) -> list[AssetChecksDefinition]:
    """What the report is checked for: open failures, and the queries in `sql/smoke/` beside the configuration file."""

    @asset_check(asset=REPORT, retry_policy=retries.RETRY)
    def no_open_failures(pipeline: PipelineResource) -> AssetCheckResult:
        """No row failed without having succeeded since; failures whose row is gone are closed first."""
        with no_retry_of_permanent_errors():
            count, newest = pipeline.pipeline.open_failures(SHOWN_FAILURES)
        return AssetCheckResult(
            passed=not count, severity=AssetCheckSeverity.ERROR, metadata=failures_metadata(count, newest)
        )

    return [no_open_failures, *map(_smoke_check, smoke_checks(config))]


def _smoke_check(check: SmokeCheck) -> AssetChecksDefinition:
    bound: Mapping[str, str] = {"table": check.table} if check.table else {}

    @asset_check(
        asset=REPORT, name=check.name, description=check.description or check.path.name, retry_policy=retries.RETRY,
        metadata={"file": check.path.name, **bound},
    )  # fmt: skip
    def still_true(pipeline: PipelineResource) -> AssetCheckResult:
        with no_retry_of_permanent_errors():
            result = run_smoke_check(pipeline.pipeline.database, check)
        return AssetCheckResult(
            passed=result.passed,
            severity=AssetCheckSeverity.ERROR,
            description=result.message or None,
            metadata={"seconds": round(result.seconds, 3), **bound},
        )

    return still_true
