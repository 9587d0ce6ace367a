-- name: next_page
-- Where the page ends that release takes next: bounded in rows, and by the row that passes the byte limit.
-- Locks: none. Index: <table>_offload_copied.
SELECT
    {key_names},
    p.stored_at::text
FROM (
    SELECT
        {keys_as_text},
        t.{stored_at} AS stored_at,
        row_number() OVER (ORDER BY t.{stored_at}, {keys}) AS position,
        coalesce(
            sum(t.{size}) OVER (ORDER BY t.{stored_at}, {keys} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0
        ) AS bytes_before
    FROM {relation} AS t
    JOIN {state} AS s ON s.tenant_id = %(tenant)s AND s.table_name = %(table)s
    WHERE {is_releasable}
    ORDER BY t.{stored_at}, {keys}
    LIMIT %(page_rows)s
) AS p
WHERE p.bytes_before < %(page_bytes)s
ORDER BY p.position DESC
LIMIT 1

-- name: release
-- Frees verified payloads: PostgreSQL hashes each once more, and a row version that was not hashed is not freed.
-- Hashing takes no lock; the rows are locked only for the update, and one that the application holds is passed over.
-- Locks: the partition's state row, then the rows, NO KEY UPDATE, never waits for those. Index: <table>_offload_copied.
WITH page AS MATERIALIZED (
    SELECT
        {keys_as_text},
        t.{stored_at} AS stored_at,
        t.{size} AS size,
        t.xmin::text AS xmin_read,
        row_number() OVER (ORDER BY t.{stored_at}, {keys}) AS position
    FROM {relation} AS t
    JOIN {state} AS s ON s.tenant_id = %(tenant)s AND s.table_name = %(table)s
    WHERE {is_releasable}
        AND {is_in_page}
    ORDER BY t.{stored_at}, {keys}
),
hashed AS MATERIALIZED (
    -- In the list, not in WHERE, and row by row: the planner must not hash the whole table on its way to this page.
    SELECT
        k.*,
        encode(sha256(convert_to(t.{payload}::text, 'UTF8')), 'hex') = t.{hash}
            AND strpos(t.{object_key}, t.{hash}) > 0 AS matches
    FROM page AS k
    CROSS JOIN LATERAL {row_of_key} AS t
    WHERE t.xmin = k.xmin_read::xid
),
turn AS MATERIALIZED (
    -- Pages wait for one another here, and not at the counters with their rows locked. CTEs run row by row: without the
    -- count, the first rows would be locked while the last are still hashed.
    SELECT
    FROM {state} AS s
    WHERE s.tenant_id = %(tenant)s
        AND s.table_name = %(table)s
        AND (SELECT count(*) FROM hashed) > 0
    FOR NO KEY UPDATE OF s
),
free AS MATERIALIZED (
    SELECT k.*
    FROM hashed AS k
    JOIN {relation} AS t ON {keys_match}
    WHERE k.matches
        AND t.xmin = k.xmin_read::xid
        AND (SELECT count(*) FROM turn) > 0
    FOR NO KEY UPDATE OF t SKIP LOCKED
),
released AS (
    UPDATE {relation} AS t
    SET
        {payload} = {placeholder},
        {status} = 'in_storage'
    FROM free AS k
    WHERE {keys_match}
        AND t.xmin = k.xmin_read::xid
        AND {current_status} = 'copied'
    RETURNING k.position, k.size
)
SELECT
    {key_names},
    p.size,
    coalesce(h.matches, FALSE) AS hash_matches,
    r.position IS NOT NULL AS is_released
FROM page AS p
LEFT JOIN hashed AS h ON h.position = p.position
LEFT JOIN released AS r ON r.position = p.position
ORDER BY p.position

-- name: is_releasable
-- A condition on `t` and its partition's state `s`: verification has passed the row, in the store that is configured, and
-- nothing else speaks against freeing it. Locks: none. Index: <table>_offload_copied, and the failures' primary key.
t.{status} = 'copied'
    AND s.store_url = %(store_url)s
    AND {is_tenant}
    AND t.{stored_at} <= s.verified_through
    AND t.{stored_at} > '-infinity'
    AND (%(release_delay)s = interval '0' OR t.{stored_at} <= clock_timestamp() - %(release_delay)s::interval)
    AND {after_position}
    AND {is_chosen}
    AND {is_due_for_release}
    AND NOT {is_known_damaged}
    AND {is_watched}

-- name: is_known_damaged
-- A condition on `t`: a verification has found its object damaged. A pass that missed the row may have moved the mark, and
-- what another found of it is known here alone, as long as the row could not be queued again: the application held it, or
-- the table refuses it. Locks: none. Index: the failures' primary key.
EXISTS (
    SELECT
    FROM {failures} AS f
    WHERE f.table_name = %(table)s
        AND f.tenant_id = %(tenant)s
        AND f.primary_key = {key_text}
        AND f.stage = 'verify'
        AND f.resolved_at IS NULL
    -- Looked up for each row: as a join, it would go through the tenant's other failures for each.
    OFFSET 0
)

-- name: is_watched
-- A condition: the trigger that refuses edits of a freed payload is there and fires. Whoever drops it waits for our
-- lock on the table, or we for theirs, and this statement's snapshot is younger than that lock.
-- Locks: none. Index: the catalog's own.
EXISTS (
    SELECT
    FROM pg_catalog.pg_trigger AS g
    WHERE g.tgrelid = {relation_name}::pg_catalog.regclass
        AND g.tgname = {guard_trigger}
        AND g.tgenabled IN ('O', 'A')
)

-- name: not_freed
-- Of the rows just released, in the same transaction, those that a trigger of the table made something else of, and those
-- that were found damaged while they were hashed, which the statement that frees them is too old to see.
-- Locks: none. Index: the primary key, and the failures'.
SELECT k.position
FROM unnest({key_arrays}) WITH ORDINALITY AS k ({key_names_bare}, position)
LEFT JOIN LATERAL {row_of_key} AS t ON TRUE
WHERE t.{status} IS DISTINCT FROM 'in_storage'
    OR coalesce(strpos(t.{object_key}, t.{hash}), 0) = 0
    OR t.{size} IS NULL
    OR t.{payload}::text IS DISTINCT FROM {placeholder}::text
    OR {is_known_damaged}

-- name: next_releasable
-- The keys of the page that release would take, for taking them one by one. Locks: none. Index: <table>_offload_copied.
SELECT
    {keys_as_text},
    t.{stored_at}::text,
    t.xmin::text
FROM {relation} AS t
JOIN {state} AS s ON s.tenant_id = %(tenant)s AND s.table_name = %(table)s
WHERE {is_releasable}
    AND {is_in_page}
ORDER BY t.{stored_at}, {keys}

-- name: count_released
-- Locks: the partition's state row, until commit. Index: its primary key.
UPDATE {state}
SET
    rows_released = rows_released + %(rows)s,
    payload_bytes_released = payload_bytes_released + %(bytes)s,
    updated_at = clock_timestamp()
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s

-- name: mismatched
-- Of these keys, the rows that are still copied and whose payload is not what was stored: the payload was written
-- past the trigger, or the pointer by hand. Locks: none. Index: the primary key.
SELECT
    {keys_as_text},
    t.{object_key},
    t.xmin::text
FROM unnest({key_arrays}) AS k ({key_names_bare})
CROSS JOIN LATERAL {row_of_key} AS t
WHERE t.{status} = 'copied'
    AND (
        encode(sha256(convert_to(t.{payload}::text, 'UTF8')), 'hex') IS DISTINCT FROM t.{hash}
        OR coalesce(strpos(t.{object_key}, t.{hash}), 0) = 0
    )
