-- name: count_in_storage
-- Rows whose payload nothing but an object has. Locks: none. Index: <table>_offload_stored and <table>_offload_copied.
SELECT
    (SELECT count(*) FROM {relation} AS t WHERE t.{status} = 'in_storage')
    + (SELECT count(*) FROM {relation} AS t WHERE t.{status} = 'copied' AND t.{payload} IS NULL)

-- name: lock_table
-- ACCESS EXCLUSIVE first, so that nothing gets between the look and the drop.
LOCK TABLE {relation} IN ACCESS EXCLUSIVE MODE

-- name: refuse_rows_in_storage
-- The look under the lock. Index: <table>_offload_stored, which makes it instant.
DO $offload$ BEGIN
    IF EXISTS (SELECT FROM {relation} AS t WHERE t.{status} = 'in_storage') THEN
        RAISE EXCEPTION 'payloads are in object storage' USING ERRCODE = 'object_in_use';
    END IF;
END $offload$

-- name: drop_trigger
DROP TRIGGER IF EXISTS {trigger} ON {relation}

-- name: drop_function
DROP FUNCTION IF EXISTS {function}

-- name: drop_default
-- Rows written from now on are "never seen": a later backfill finds them.
ALTER TABLE {relation} ALTER COLUMN {status} DROP DEFAULT

-- name: drop_columns
-- ACCESS EXCLUSIVE for an instant; our indexes go with their columns.
ALTER TABLE {relation} {columns}

-- name: forget_partitions
-- Locks: the table's lines, which nobody else needs any more. Index: none; they are few.
DELETE FROM {state} WHERE table_name = {table_name}

-- name: forget_failures
DELETE FROM {failures} WHERE table_name = {table_name}

-- name: close_gates
-- Nothing is verified, and nothing was scanned, as far as a later install is concerned.
UPDATE {state}
SET
    checkpoint = NULL,
    backfilled_at = NULL,
    verified_through = NULL,
    store_url = NULL,
    full_checkpoint = NULL,
    fully_verified_at = NULL,
    updated_at = clock_timestamp()
WHERE table_name = {table_name}

-- name: settle_failures
UPDATE {failures}
SET resolved_at = clock_timestamp()
WHERE table_name = {table_name}
    AND resolved_at IS NULL

-- name: is_remembered
-- Whether the bookkeeping still has something to close. Locks: none.
SELECT
    EXISTS (
        SELECT
        FROM {state}
        WHERE table_name = {table_name}
            AND num_nonnulls(checkpoint, backfilled_at, verified_through, store_url, full_checkpoint, fully_verified_at) > 0
    )
    OR EXISTS (
        SELECT
        FROM {failures}
        WHERE table_name = {table_name}
            AND resolved_at IS NULL
    )

-- name: has_moving_rows
-- Whether rows still say that they are queued or copied. Locks: none. Index: <table>_offload_pending and _copied.
SELECT
    EXISTS (SELECT FROM {relation} AS t WHERE t.{status} = 'pending_move')
    OR EXISTS (SELECT FROM {relation} AS t WHERE t.{status} = 'copied')

-- name: forget_page
-- One page of the table in primary-key order; what is queued or copied becomes "never seen" and loses its pointer. The
-- payload is in the row, and a pointer that nothing keeps true would soon lie. A row that the application holds is left.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH named AS MATERIALIZED (
    SELECT
        {keys_as_text},
        row_number() OVER (ORDER BY {keys}) AS position,
        t.{status} IN ('pending_move', 'copied') AND (t.{payload} IS NOT NULL OR t.{object_key} IS NULL) AS is_moving
    FROM {relation} AS t
    WHERE {after_cursor}
    ORDER BY {keys}
    LIMIT {page_rows}
),
k AS MATERIALIZED (
    SELECT named.*
    FROM named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE named.is_moving
        AND {current_status} IN ('pending_move', 'copied')
        AND (t.{payload} IS NOT NULL OR t.{object_key} IS NULL)
    FOR NO KEY UPDATE OF t SKIP LOCKED
),
forgotten AS (
    UPDATE {relation} AS t
    SET
        {status} = {never_seen},
        {size} = NULL,
        {object_key} = NULL,
        {hash} = NULL,
        {stored_at} = NULL
    FROM k
    WHERE {keys_match}
        AND {current_status} IN ('pending_move', 'copied')
    RETURNING k.position
)
SELECT
    {key_names},
    p.is_moving,
    f.position IS NOT NULL AS is_forgotten
FROM named AS p
LEFT JOIN forgotten AS f ON f.position = p.position
ORDER BY p.position

-- name: drop_index
-- SHARE UPDATE EXCLUSIVE: reads and writes go on.
DROP INDEX CONCURRENTLY {index}

-- name: our_indexes
-- Of the queue's indexes, those that stand.
SELECT
    n.nspname::text,
    c.relname::text
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.indrelid = %(relation)s::regclass
    AND c.relname = ANY(%(names)s)
ORDER BY c.relname

-- name: our_functions
-- Of these functions, the ones that stand and are ours, with the argument types that tell them apart. One behind a
-- trigger is known by that, or by its body; one that applications call by its comment, and it stays where it has come to
-- read another installed table.
SELECT
    p.proname::text,
    pg_catalog.pg_get_function_identity_arguments(p.oid)
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = %(schema)s
    AND (
        p.proname = ANY(%(trigger_functions)s)
            AND p.pronargs = 0
            AND p.prorettype = 'trigger'::pg_catalog.regtype
            AND (
                EXISTS (
                    SELECT
                    FROM unnest(%(trigger_functions)s::text[], %(marks)s::text[]) AS w (name, mark)
                    WHERE w.name = p.proname
                        AND pg_catalog.strpos(p.prosrc, w.mark) > 0
                )
                OR EXISTS (
                    SELECT
                    FROM pg_catalog.pg_trigger AS g
                    WHERE g.tgfoid = p.oid
                        AND g.tgname = ANY(%(triggers)s)
                )
            )
        OR p.proname = ANY(%(called_functions)s)
            AND pg_catalog.obj_description(p.oid, 'pg_proc') LIKE 'offload_pipeline %%'
            AND ({other_table}) IS NULL
    )
ORDER BY p.proname
