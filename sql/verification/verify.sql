-- name: wait_for_deletions
-- Garbage collection looks at the rows and deletes objects under the same lock, alone. So what it deletes is gone before
-- the mark is set, and missed by this pass; and a row recorded before the mark, it has seen.
-- Locks: advisory, shared, until the mark is set; waits for a chunk of deletions, some seconds as a rule.
SELECT pg_advisory_xact_lock_shared(hashtextextended('offload_pipeline gc', 0))
FROM set_config('lock_timeout', '3min', TRUE)

-- name: set_mark
-- Locks the state row, so that every recording transaction is either committed and visible or will stamp its rows
-- later than the mark (see open_state and record_copied).
INSERT INTO {state} AS s (tenant_id, table_name, verification_mark)
VALUES (%(tenant)s, %(table)s, clock_timestamp())
ON CONFLICT (tenant_id, table_name) DO UPDATE SET
    verification_mark = greatest(clock_timestamp(), s.verification_mark + interval '1 microsecond'),
    updated_at = clock_timestamp()
RETURNING
    s.verification_mark,
    s.verified_through,
    s.store_url,
    coalesce(s.moved_by_hand_at > coalesce(s.verified_through, '-infinity'), FALSE) AS has_moves_by_hand

-- name: new_copies
-- One page of the rows copied since the last pass. Locks: none. Index: <table>_offload_copied.
SELECT
    {named_object}
FROM {relation} AS t
WHERE t.{status} = 'copied'
    AND {is_tenant}
    AND t.{stored_at} > coalesce(%(verified_through)s, '-infinity'::timestamptz)
    AND t.{stored_at} <= %(mark)s
    AND {after_position}
ORDER BY t.{stored_at}, {keys}
LIMIT %(page_rows)s

-- name: earlier_copies
-- Rows verified earlier: those after a random moment, then from the beginning, so that few rows are all among them.
-- Locks: none. Index: <table>_offload_copied or <table>_offload_stored.
WITH pivot AS MATERIALIZED (
    SELECT min(e.{stored_at}) + (max(e.{stored_at}) - min(e.{stored_at})) * random() AS moment
    FROM {relation} AS e
    WHERE e.{status} = {sampled_status}
        AND e.{stored_at} <= %(sampled_through)s::timestamptz
        AND isfinite(e.{stored_at})
        AND {is_tenant_e}
)
(
    SELECT
        {named_object}
    FROM {relation} AS t
    WHERE t.{status} = {sampled_status}
        AND {is_tenant}
        AND t.{stored_at} >= (SELECT moment FROM pivot)
        AND t.{stored_at} <= %(sampled_through)s::timestamptz
    ORDER BY t.{stored_at}
    LIMIT %(page_rows)s
)
UNION ALL
(
    SELECT
        {named_object}
    FROM {relation} AS t
    WHERE t.{status} = {sampled_status}
        AND {is_tenant}
        AND t.{stored_at} < (SELECT moment FROM pivot)
    ORDER BY t.{stored_at}
    LIMIT %(page_rows)s
)
LIMIT %(page_rows)s

-- name: copies_of
-- Of these rows, the ones that name an object. Locks: none. Index: the primary key.
SELECT
    {named_object}
FROM unnest({key_arrays}) AS k ({key_names_bare})
CROSS JOIN LATERAL {row_of_key} AS t
WHERE t.{status} IN ('copied', 'in_storage')
    AND {is_tenant}

-- name: still_named
-- Which of these rows still name the object that was looked at, and PostgreSQL's own hash of what the row holds.
-- Locks: none. Index: the primary key.
SELECT
    k.position,
    t.{status},
    encode(sha256(convert_to(t.{payload}::text, 'UTF8')), 'hex')
FROM unnest({key_arrays}, %(object_keys)s::text[]) WITH ORDINALITY AS k ({key_names_bare}, object_key, position)
CROSS JOIN LATERAL {row_of_key} AS t
WHERE t.{object_key} IS NOT DISTINCT FROM k.object_key
    AND t.{status} IN ('copied', 'in_storage')

-- name: advance
-- The gate that release reads.
UPDATE {state}
SET
    verified_through = greatest(verified_through, %(mark)s),
    rows_verified = rows_verified + %(rows)s,
    updated_at = clock_timestamp()
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s

-- name: open_damage
-- The open `verify` failures of these rows. Locks: none. Index: the primary key.
SELECT
    primary_key,
    last_failed_at
FROM {failures}
WHERE table_name = %(table)s
    AND tenant_id = %(tenant)s
    AND primary_key = ANY(%(primary_keys)s::text[])
    AND stage = 'verify'
    AND resolved_at IS NULL

-- name: resolve_damage
-- Closes these failures, unless a pass found the same row damaged since they were read. Locks: the lines.
-- Index: the primary key.
UPDATE {failures} AS f
SET resolved_at = clock_timestamp()
FROM unnest(%(primary_keys)s::text[], %(moments)s::timestamptz[]) AS s (primary_key, last_failed_at)
WHERE f.table_name = %(table)s
    AND f.tenant_id = %(tenant)s
    AND f.primary_key = s.primary_key
    AND f.stage = 'verify'
    AND f.last_failed_at = s.last_failed_at
    AND f.resolved_at IS NULL

-- name: note_refusal
-- Says in a row's failure why its copy is not made again. Locks: the line. Index: the primary key.
UPDATE {failures}
SET message = left(message || %(note)s, %(characters)s)
WHERE table_name = %(table)s
    AND tenant_id = %(tenant)s
    AND primary_key = %(primary_key)s
    AND stage = 'verify'
    AND resolved_at IS NULL
