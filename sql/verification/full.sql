-- name: copies_in_order
-- One page of every row with a copy up to the mark, in the order of stored_at, then the key. A row that is released
-- meanwhile keeps its place: each page sees it once, on one side or the other.
-- Locks: none. Index: <table>_offload_copied and <table>_offload_stored.
SELECT
    {named_object},
    t.{stored_at}::text
FROM (
    (
        SELECT
            {keys},
            t.{stored_at},
            t.{object_key},
            t.{hash},
            t.{size}
        FROM {relation} AS t
        WHERE t.{status} = 'copied'
            AND {is_tenant}
            AND t.{stored_at} <= %(mark)s
            AND {after_position}
        ORDER BY t.{stored_at}, {keys}
        LIMIT %(page_rows)s
    )
    UNION ALL
    (
        SELECT
            {keys},
            t.{stored_at},
            t.{object_key},
            t.{hash},
            t.{size}
        FROM {relation} AS t
        WHERE t.{status} = 'in_storage'
            AND {is_tenant}
            AND t.{stored_at} <= %(mark)s
            AND {after_position}
        ORDER BY t.{stored_at}, {keys}
        LIMIT %(page_rows)s
    )
) AS t
ORDER BY t.{stored_at}, {keys}
LIMIT %(page_rows)s

-- name: copies_out_of_order
-- Rows that the order of stored_at never comes to: without one, or stamped where no clock has been. Edited by hand.
-- Locks: none. Index: <table>_offload_copied and <table>_offload_stored, once for each condition.
WITH t AS MATERIALIZED (
    SELECT t.*
    FROM {relation} AS t
    WHERE t.{status} = 'copied' AND t.{stored_at} IS NULL AND {is_tenant} AND {after_cursor}
    UNION ALL
    SELECT t.*
    FROM {relation} AS t
    WHERE t.{status} = 'in_storage' AND t.{stored_at} IS NULL AND {is_tenant} AND {after_cursor}
    UNION ALL
    SELECT t.*
    FROM {relation} AS t
    WHERE t.{status} = 'copied' AND t.{stored_at} > %(mark)s + interval '1 day' AND {is_tenant} AND {after_cursor}
    UNION ALL
    SELECT t.*
    FROM {relation} AS t
    WHERE t.{status} = 'in_storage' AND t.{stored_at} > %(mark)s + interval '1 day' AND {is_tenant} AND {after_cursor}
)
SELECT
    {named_object}
FROM t
ORDER BY {keys}
LIMIT %(page_rows)s

-- name: read_checkpoint
-- Where an unfinished full pass ended: stored_at and key of its last row. Locks: none. Index: the primary key.
SELECT full_checkpoint
FROM {state}
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s

-- name: write_checkpoint
-- Locks: the state row, for the statement alone. Index: its primary key.
UPDATE {state}
SET
    full_checkpoint = %(checkpoint)s::text[],
    updated_at = clock_timestamp()
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s

-- name: finish
-- Locks: the state row, which the gate's advance holds already. Index: its primary key.
UPDATE {state}
SET
    full_checkpoint = NULL,
    fully_verified_at = clock_timestamp()
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s
