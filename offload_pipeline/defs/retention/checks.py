"""`orphan_share_is_small`: fails where the share brake held a table back, because something else is wrong there."""

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec, MetadataValue

from offload_pipeline.config import Config
from offload_pipeline.retention.findings import GarbageResult

ORPHAN_SHARE = "orphan_share_is_small"


def orphan_share_spec(config: Config) -> AssetCheckSpec:
    """Evaluated by the asset itself, which has the listing at hand."""
    share = config.retention.max_orphan_share
    return AssetCheckSpec(
        ORPHAN_SHARE,
        asset="orphaned_objects",
        description=f"Fails where more than {share:.1%} of a table's objects look orphaned: it is then not touched.",
    )


def orphan_share_result(result: GarbageResult) -> AssetCheckResult:
    """The tables that are not touched, and why."""
    lines = [f"- {name}: {reason}" for name, reason in result.stopped.items()]
    return AssetCheckResult(
        check_name=ORPHAN_SHARE,
        passed=not lines,
        severity=AssetCheckSeverity.ERROR,
        metadata={"tables": len(lines), **({"reasons": MetadataValue.md("\n".join(lines))} if lines else {})},
    )
