-- name: record_failure
-- Counts another attempt, unless the store as a whole was out. The next waits as long as it has been failing (so the
-- wait doubles), 30 seconds at least, a day at most (a quarter of an hour in an outage), with up to half as much jitter.
-- Locks: its own row. Index: the primary key.
INSERT INTO {failures} AS f (tenant_id, table_name, primary_key, stage, error_class, message, permanent, row_version,
    next_attempt_at)
VALUES (%(tenant)s, %(table)s, %(primary_key)s, %(stage)s, %(error_class)s, %(message)s, %(permanent)s,
    %(row_version)s, clock_timestamp() + (1 + random() / 2) * interval '30 seconds')
ON CONFLICT (table_name, tenant_id, primary_key, stage) DO UPDATE SET
    error_class = excluded.error_class,
    message = excluded.message,
    permanent = excluded.permanent,
    row_version = excluded.row_version,
    attempts = CASE WHEN f.resolved_at IS NULL THEN f.attempts + %(counts)s::integer ELSE 1 END,
    first_failed_at = CASE WHEN f.resolved_at IS NULL THEN f.first_failed_at ELSE clock_timestamp() END,
    last_failed_at = clock_timestamp(),
    next_attempt_at = clock_timestamp() + (1 + random() / 2) * least(
        CASE WHEN %(counts)s = 1 THEN interval '1 day' ELSE interval '15 minutes' END,
        greatest(
            interval '30 seconds',
            CASE WHEN f.resolved_at IS NULL THEN clock_timestamp() - f.first_failed_at END
        )
    ),
    resolved_at = NULL

-- name: resolve_failures
-- A row that succeeded has no open failure. Locks: the lines. Index: the primary key.
UPDATE {failures}
SET resolved_at = clock_timestamp()
WHERE table_name = %(table)s
    AND tenant_id = %(tenant)s
    AND stage = ANY(%(stages)s)
    AND primary_key = ANY(%(primary_keys)s)
    AND resolved_at IS NULL

-- name: is_waiting
-- A condition on `t`: the row was refused for good, tried too often, or waits for its next attempt. Asking for the
-- same version lets a row that has changed since try again at once; leaving it out keeps a scan index-only.
-- Locks: none. Index: the primary key of the failures, or its partial index of open ones.
EXISTS (
    SELECT
    FROM {failures} AS f
    WHERE f.table_name = %(table)s
        AND f.tenant_id = {tenant_text}
        AND f.primary_key = {key_text}
        AND f.stage = {stage}
        AND f.resolved_at IS NULL
        AND {is_same_version}
        AND (f.permanent OR f.attempts >= %(max_attempts)s OR f.next_attempt_at > statement_timestamp())
)

-- name: open_keys
-- One page of the rows of a partition with an open failure at one stage. Locks: none. Index: the primary key.
SELECT primary_key
FROM {failures}
WHERE table_name = %(table)s
    AND tenant_id = %(tenant)s
    AND stage = %(stage)s
    AND resolved_at IS NULL
    AND (%(after)s::text IS NULL OR primary_key > %(after)s::text)
ORDER BY primary_key
LIMIT %(page_rows)s

-- name: tenants_having_open
-- The tenants of a table that something of is open. Locks: none. Index: payload_offload_failures_open.
SELECT DISTINCT tenant_id
FROM {failures}
WHERE table_name = %(table)s
    AND resolved_at IS NULL

-- name: newest_open
-- And the time. Locks: none. Index: payload_offload_failures_open, its last entry.
SELECT
    max(last_failed_at),
    statement_timestamp()
FROM {failures}
WHERE resolved_at IS NULL

-- name: open_in_table
-- One page of a table's open failures, of one tenant or of all. Locks: none. Index: payload_offload_failures_open, or
-- the primary key for one tenant.
SELECT
    tenant_id,
    primary_key,
    stage,
    last_failed_at
FROM {failures}
WHERE table_name = %(table)s
    AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s::text)
    AND resolved_at IS NULL
    AND last_failed_at <= %(until)s::timestamptz
    AND (last_failed_at, tenant_id, primary_key, stage) > (%(last_failed_at)s::timestamptz, %(after_tenant)s::text,
        %(after)s::text, %(after_stage)s::text)
ORDER BY last_failed_at, tenant_id, primary_key, stage
LIMIT %(page_rows)s

-- name: statuses_of_failed
-- Of these rows of these tenants, the ones that exist. Locks: none. Index: the primary key.
SELECT
    k.position,
    t.{status}
FROM unnest({key_arrays}, %(tenants)s::text[]) WITH ORDINALITY AS k ({key_names_bare}, tenant, position)
CROSS JOIN LATERAL {row_of_key} AS t
WHERE {tenant_text} = k.tenant

-- name: resolve_stale
-- Closes these failures, unless they failed again meanwhile. Locks: the lines. Index: the primary key.
UPDATE {failures} AS f
SET resolved_at = clock_timestamp()
FROM unnest(%(tenants)s::text[], %(primary_keys)s::text[], %(stages)s::text[], %(moments)s::timestamptz[])
    AS s (tenant_id, primary_key, stage, last_failed_at)
WHERE f.table_name = %(table)s
    AND f.tenant_id = s.tenant_id
    AND f.primary_key = s.primary_key
    AND f.stage = s.stage
    AND f.last_failed_at = s.last_failed_at
    AND f.resolved_at IS NULL

-- name: retry_failed
-- Makes the rows that were given up, or that wait for their next attempt, due at once, with all their attempts before
-- them. They stay open until they succeed. Locks: the lines. Index: payload_offload_failures_open.
UPDATE {failures}
SET
    permanent = FALSE,
    attempts = 0,
    first_failed_at = clock_timestamp(),
    next_attempt_at = clock_timestamp()
WHERE table_name = %(table)s
    AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s::text)
    AND stage <> 'verify'
    AND resolved_at IS NULL

-- name: open_failures
-- The newest, of the named tables or of all. Locks: none. Index: payload_offload_failures_open.
SELECT
    table_name,
    tenant_id,
    primary_key,
    stage,
    error_class,
    message,
    attempts,
    last_failed_at,
    stage NOT IN ('verify', 'restore') AND (permanent OR attempts >= %(max_attempts)s) AS given_up
FROM {failures}
WHERE resolved_at IS NULL
    AND (%(tables)s::text[] IS NULL OR table_name = ANY(%(tables)s::text[]))
ORDER BY last_failed_at DESC
LIMIT %(limit)s

-- name: count_open
-- Open failures of one table by stage, and those of them that nothing will try again before the row changes: every pass
-- of verification looks at its own again, and every restore tries all.
-- Locks: none. Index: payload_offload_failures_open.
SELECT
    stage,
    count(*),
    count(*) FILTER (
        WHERE stage NOT IN ('verify', 'restore') AND (permanent OR attempts >= %(max_attempts)s)
    )
FROM {failures}
WHERE table_name = %(table)s
    AND resolved_at IS NULL
GROUP BY stage
ORDER BY stage

-- name: count_given_up
-- Rows of one table that nothing will try again before they change. Locks: none. Index: payload_offload_failures_open.
SELECT tenant_id, count(*)
FROM {failures}
WHERE table_name = %(table)s
    AND resolved_at IS NULL
    AND stage NOT IN ('verify', 'restore')
    AND (permanent OR attempts >= %(max_attempts)s)
GROUP BY tenant_id
