-- name: pending_by_tenant
-- Depth, bytes and age of the pending queue, or of one tenant's, without what waits for another attempt or was given up.
-- Locks: none. Index: <table>_offload_pending, index-only on a vacuumed table.
SELECT
    {tenant_text},
    count(*),
    coalesce(sum(t.{size}), 0)::bigint,
    min({created_at})
FROM {relation} AS t
WHERE t.{status} = 'pending_move'
    AND {is_chosen}
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

-- name: tenants_having
-- The tenants that have rows of one status, hopping from one to the next in the index.
-- Locks: none. Index: the one of that status.
WITH RECURSIVE hop AS (
    (
        SELECT t.{tenant_column} AS tenant
        FROM {relation} AS t
        WHERE t.{status} {has_status}
            AND t.{tenant_column} IS NOT NULL
        ORDER BY t.{tenant_column}
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT t.{tenant_column}
        FROM {relation} AS t
        WHERE t.{status} {has_status}
            AND t.{tenant_column} > hop.tenant
        ORDER BY t.{tenant_column}
        LIMIT 1
    )
    FROM hop
    WHERE hop.tenant IS NOT NULL
)
SELECT tenant::text
FROM hop
WHERE tenant IS NOT NULL

-- name: known_tenants
-- The tenants that have ever been worked on. Locks: none.
SELECT tenant_id
FROM {state}
WHERE table_name = %(table)s
ORDER BY tenant_id

-- name: other_stores
-- Stores other than the configured one that partitions of a table have their objects in. Locks: none.
SELECT
    store_url,
    count(*),
    min(tenant_id)
FROM {state}
WHERE table_name = %(table)s
    AND store_url <> %(store_url)s
GROUP BY store_url
ORDER BY store_url

-- name: was_worked_on
-- Whether anything was ever recorded of a tenant. Locks: none. Index: the primary keys.
SELECT EXISTS (SELECT FROM {state} WHERE tenant_id = %(tenant)s AND table_name = %(table)s)
    OR EXISTS (SELECT FROM {failures} WHERE table_name = %(table)s AND tenant_id = %(tenant)s)

-- name: has_rows
-- Whether a tenant has any row. Locks: none. Index: one that the application has on its tenant column, if it has one.
SELECT EXISTS (
    SELECT
    FROM {relation} AS t
    WHERE {is_tenant}
)

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
