"""What garbage collection found and did, in numbers."""

from dataclasses import dataclass

from offload_pipeline.errors import OffloadError


@dataclass
class TableGarbage:
    """What was found of one table's objects, and what was deleted of it.

    `objects` = `named` + `young` (not named by the row whose key they bear, and too young to be looked for elsewhere)
    + `expired` (waiting in payload_offload_expired) + `orphans`. `spared`: orphans not deleted in the end, because they
    were named again, renewed or being written. `stopped` says why none was.
    """

    objects: int = 0
    bytes: int = 0
    named: int = 0
    young: int = 0
    expired: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    spared: int = 0
    failed: int = 0
    stopped: str | None = None

    @property
    def orphan_share(self) -> float:
        """Orphans among the objects, 0 to 1."""
        return self.orphans / self.objects if self.objects else 0.0


@dataclass
class GarbageResult:
    """One collection. `foreign` objects fit no table's template; `leftovers` are halves that killed processes left."""

    tables: dict[str, TableGarbage]
    foreign: int = 0
    foreign_bytes: int = 0
    leftovers: int = 0
    leftover_bytes: int = 0
    leftovers_deleted: int = 0
    stopped_by: OffloadError | None = None
    """What ended the deletion early, when the store as a whole failed."""

    @property
    def stopped(self) -> dict[str, str]:
        """The tables that look wrong, and why."""
        return {name: table.stopped for name, table in self.tables.items() if table.stopped}

    @property
    def has_failed(self) -> bool:
        """Whether the store failed, for one object or altogether."""
        return self.stopped_by is not None or any(table.failed for table in self.tables.values())
