-- name: can_be_tenant
-- Whether the column's type holds this tenant at all; an error where it does not.
SELECT {given_tenant} = %(tenant)s::text

-- name: count_tenant
-- What a tenant has: payloads in storage, copies whose payload is in the row as well, their payload bytes, and rows
-- that hold a payload. Reads every row of the tenant, not their TOAST. Locks: none.
SELECT
    count(*) FILTER (WHERE t.{object_key} IS NOT NULL AND t.{status} = 'in_storage'),
    count(*) FILTER (WHERE t.{object_key} IS NOT NULL AND t.{status} IS DISTINCT FROM 'in_storage'),
    coalesce(sum(t.{size}) FILTER (WHERE t.{object_key} IS NOT NULL), 0)::bigint,
    count(*) FILTER (
        WHERE t.{payload} IS NOT NULL
            AND t.{status} IS DISTINCT FROM 'in_storage'
            AND t.{status} IS DISTINCT FROM 'expired'
    )
FROM {relation} AS t
WHERE {is_tenant}

-- name: pointers_of_tenant
-- One page of the tenant's rows that name an object, whatever their status, in primary-key order.
-- Locks: none. Index: the primary key.
SELECT
    {keys_as_text},
    t.{status} IS NOT DISTINCT FROM 'in_storage',
    t.xmin::text
FROM {relation} AS t
WHERE t.{object_key} IS NOT NULL
    AND {is_tenant}
    AND {after_cursor}
ORDER BY {keys}
LIMIT %(page_rows)s

-- name: hold
-- Copies lose their pointer and keep their payload in the row; the size that stays marks the hold: they are not copied
-- again until they are written anew. Their objects are listed for deletion.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH named AS MATERIALIZED (
    SELECT *
    FROM unnest({key_arrays}, %(xmins)s::text[]) WITH ORDINALITY AS s ({key_names_bare}, xmin_read, position)
),
k AS MATERIALIZED (
    SELECT
        named.*,
        t.{object_key} AS object_key,
        t.{size} AS size
    FROM named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE t.xmin = named.xmin_read::xid
        AND t.{object_key} IS NOT NULL
        AND t.{status} IS DISTINCT FROM 'in_storage'
    FOR NO KEY UPDATE OF t SKIP LOCKED
),
held AS (
    UPDATE {relation} AS t
    SET
        {status} = 'inline',
        {size} = coalesce(t.{size}, 0),
        {object_key} = NULL,
        {hash} = NULL,
        {stored_at} = NULL
    FROM k
    WHERE {keys_match}
        AND t.xmin = k.xmin_read::xid
    RETURNING k.position, k.object_key, k.size, t.{object_key} IS NULL AS is_given_up
),
listed AS (
    INSERT INTO {expired} AS e (object_key, table_name, tenant_id, bytes)
    SELECT
        h.object_key,
        %(table)s,
        %(tenant)s,
        max(coalesce(h.size, 0))
    FROM held AS h
    GROUP BY h.object_key
    ON CONFLICT (object_key) DO UPDATE SET
        table_name = excluded.table_name,
        tenant_id = excluded.tenant_id,
        bytes = excluded.bytes,
        expired_at = excluded.expired_at
)
SELECT
    position,
    coalesce(size, 0),
    is_given_up,
    TRUE AS is_vacant
FROM held
