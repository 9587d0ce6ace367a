-- name: pending_by_tenant
-- Depth, bytes and age of the pending queue, without the rows that wait for another attempt or were given up.
-- Locks: none. Index: <table>_offload_pending, index-only on a vacuumed table.
SELECT
    {tenant_text},
    count(*),
    coalesce(sum(t.{size}), 0)::bigint,
    min({created_at})
FROM {relation} AS t
WHERE t.{status} = 'pending_move'
    AND {is_not_waiting}
GROUP BY 1

-- name: unreleased_by_tenant
-- Copies that wait for verification or release, their release_delay over: what a run killed halfway leaves behind.
-- Locks: none. Index: <table>_offload_copied.
SELECT
    {tenant_text},
    count(*),
    coalesce(sum(t.{size}), 0)::bigint,
    min(t.{stored_at}) + %(release_delay)s
FROM {relation} AS t
WHERE t.{status} = 'copied'
    AND t.{stored_at} <= statement_timestamp() - %(release_delay)s
    AND {is_due_for_release}
GROUP BY 1

-- name: known_tenants
-- The tenants that have ever been worked on. Locks: none.
SELECT tenant_id
FROM {state}
WHERE table_name = %(table)s
ORDER BY tenant_id

-- name: state_by_tenant
-- Progress and gate of each partition. Locks: none.
SELECT
    tenant_id,
    rows_copied,
    payload_bytes_copied,
    object_bytes_copied,
    rows_released,
    payload_bytes_released,
    verified_through
FROM {state}
WHERE table_name = %(table)s
ORDER BY tenant_id
