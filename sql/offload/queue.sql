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
-- Copies that wait for verification or release, their release_delay over: what a run killed halfway, or a launch of
-- payload_objects alone, leaves behind; without those that release has failed on and will leave alone.
-- Locks: none. Index: <table>_offload_copied, index-only on a vacuumed table.
SELECT
    {tenant_text},
    count(*),
    coalesce(sum(t.{size}), 0)::bigint,
    min(t.{stored_at}) + %(release_delay)s
FROM {relation} AS t
WHERE t.{status} = 'copied'
    AND t.{stored_at} <= statement_timestamp() - %(release_delay)s
    AND {is_not_waiting_for_release}
GROUP BY 1

-- name: copied_by_tenant
-- Copies whose payload is still in the row: how many, their bytes, how many of them verification has passed, and how many
-- of those could be free by now. Locks: none. Index: <table>_offload_copied, index-only on a vacuumed table.
SELECT
    found.tenant,
    sum(found.rows)::bigint,
    sum(found.payload_bytes)::bigint,
    sum(found.rows) FILTER (WHERE found.is_verified)::bigint,
    sum(found.rows) FILTER (WHERE found.is_verified AND found.is_due)::bigint
FROM (
    SELECT
        {tenant_text} AS tenant,
        coalesce(t.{stored_at} <= s.verified_through, FALSE) AS is_verified,
        coalesce(t.{stored_at} <= statement_timestamp() - %(release_delay)s, FALSE)
            AND {is_not_waiting_for_release} AS is_due,
        count(*) AS rows,
        coalesce(sum(t.{size}), 0) AS payload_bytes
    FROM {relation} AS t
    LEFT JOIN {state} AS s ON s.table_name = %(table)s AND s.tenant_id = {tenant_text}
    WHERE t.{status} = 'copied'
    GROUP BY 1, 2, 3
) AS found
GROUP BY found.tenant

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

-- name: has_status
-- Whether any row has one status: of a table whose rows are all one tenant's. Locks: none. Index: the one of that status.
SELECT EXISTS (
    SELECT
    FROM {relation} AS t
    WHERE t.{status} {has_status}
)

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

-- name: was_erased
-- Whether anything of a tenant was ever erased. Locks: none. Reads the audit log, which has no index but its primary key.
SELECT EXISTS (
    SELECT
    FROM {log}
    WHERE table_name = %(table)s
        AND tenant_id = %(tenant)s
        AND action IN ('erase', 'erase objects')
)

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
