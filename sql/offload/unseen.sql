-- name: claim_unseen
-- One page of the rows the trigger has never seen (status NULL), in primary-key order, each claimed for this transaction.
-- The page is cut at the byte limit by the stored sizes, which cost nothing to ask for: of compressed payloads, theirs.
-- Locks: advisory only, never a row. Index: <table>_offload_unseen.
WITH page AS MATERIALIZED (
    SELECT
        {keys_as_text},
        {key_text} AS key_text,
        coalesce(pg_column_size(t.{payload}), 0) AS stored_bytes,
        row_number() OVER (ORDER BY {keys}) AS position,
        coalesce(
            sum(pg_column_size(t.{payload})) OVER (ORDER BY {keys} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0
        ) AS stored_bytes_before
    FROM {relation} AS t
    WHERE t.{status} IS NULL
        AND {is_tenant}
        AND {after_cursor}
    ORDER BY {keys}
    LIMIT %(batch_rows)s
)
SELECT
    {key_names},
    p.stored_bytes,
    pg_try_advisory_xact_lock(hashtextextended(%(lock_space)s::text || p.key_text, 0)) AS claimed
FROM page AS p
WHERE p.stored_bytes_before < %(batch_bytes)s
ORDER BY p.position

-- name: fetch_unseen
-- The claimed rows, in a snapshot taken after the claim; the payload of those that are still never seen and above the
-- threshold. Each is printed once, which is what costs, and only when it is fetched. Locks: none. Index: the primary key.
SELECT
    k.position,
    t.xmin::text,
    CASE
        WHEN %(threshold_bytes)s = 0 OR octet_length(printed.payload) > %(threshold_bytes)s
            THEN convert_to(printed.payload, 'UTF8')
    END
FROM unnest({key_arrays}) WITH ORDINALITY AS k ({key_names_bare}, position)
LEFT JOIN LATERAL {row_of_key} AS t ON t.{status} IS NULL AND {is_tenant}
LEFT JOIN LATERAL (SELECT t.{payload}::text AS payload OFFSET 0) AS printed ON TRUE

-- name: enqueue
-- Rows that a scan could not copy join the pending queue, so that no checkpoint passes them for good.
-- The size bounds the batch until the copy writes it anew: that of the payload as it was read, or else, of what could not
-- be, as it is stored.
-- `is_left`: the application holds the row now, and it is still never seen; a later scan must find it.
-- num_nulls: as {current_status}, so that no plan reads the whole index of never-seen rows.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH named AS MATERIALIZED (
    SELECT *
    FROM unnest({key_arrays}, %(sizes)s::bigint[]) WITH ORDINALITY AS s ({key_names_bare}, size, position)
),
k AS MATERIALIZED (
    SELECT named.*
    FROM named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE num_nulls(t.{status}) = 1
    FOR NO KEY UPDATE OF t SKIP LOCKED
),
queued AS (
    UPDATE {relation} AS t
    SET
        {status} = 'pending_move',
        {size} = coalesce(t.{size}, k.size, pg_column_size(t.{payload}))
    FROM k
    WHERE {keys_match}
        AND num_nulls(t.{status}) = 1
    RETURNING k.position, t.xmin::text AS row_version
)
SELECT
    k.position,
    q.row_version,
    q.position IS NULL AND t.{status} IS NULL AS is_left
FROM named AS k
CROSS JOIN LATERAL {row_of_key} AS t
LEFT JOIN queued AS q ON q.position = k.position

-- name: read_checkpoint
-- Locks: none. Index: the primary key.
SELECT checkpoint, backfilled_at
FROM {state}
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s

-- name: write_checkpoint
-- How far the scan of never-seen rows has come; backfilled_at when it has reached the end.
-- Locks: the partition's state row, for the statement alone. Index: its primary key.
INSERT INTO {state} AS s (tenant_id, table_name, checkpoint, backfilled_at)
VALUES (%(tenant)s, %(table)s, %(checkpoint)s, CASE WHEN %(is_complete)s THEN clock_timestamp() END)
ON CONFLICT (tenant_id, table_name) DO UPDATE SET
    checkpoint = coalesce(excluded.checkpoint, s.checkpoint),
    backfilled_at = excluded.backfilled_at,
    updated_at = clock_timestamp()
