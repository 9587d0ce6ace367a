"""What stays in the row after the copy, chosen for one run instead of by `after_copy`."""

from dataclasses import replace

from offload_pipeline.errors import UserError
from offload_pipeline.offload.claims import Partition


def with_ending(partition: Partition, *, null_after_upload: bool | None) -> Partition:
    """The partition with `after_copy` clear (True) or keep (False), for this run; None: as configured.

    UserError where NOT NULL forbids clearing.
    """
    if null_after_upload is None:
        return partition
    table = partition.table
    if null_after_upload and table.columns[table.config.payload].not_null:
        raise UserError(
            f"{table.name}: {table.config.payload} is NOT NULL and cannot be cleared; "
            f"ALTER COLUMN {table.config.payload} DROP NOT NULL, or leave null_after_upload out"
        )
    config = table.config.model_copy(update={"after_copy": "clear" if null_after_upload else "keep"})
    return replace(partition, table=replace(table, config=config))
