-- name: count_expirable
-- Rows past their retention. Locks: none. Index: <table>_offload_stored.
SELECT
    count(*),
    coalesce(sum(t.{size}), 0)::bigint
FROM {relation} AS t
WHERE t.{status} = 'in_storage'
    AND {is_tenant}
    AND isfinite(t.{stored_at})
    AND t.{stored_at} <= clock_timestamp() - %(object_retention)s::interval

-- name: expirable
-- One page of the rows past their retention, oldest first, without those that wait for another attempt.
-- Locks: none. Index: <table>_offload_stored.
SELECT
    {keys_as_text},
    t.{stored_at}::text,
    t.xmin::text
FROM {relation} AS t
WHERE t.{status} = 'in_storage'
    AND {is_tenant}
    AND isfinite(t.{stored_at})
    AND t.{stored_at} <= clock_timestamp() - %(object_retention)s::interval
    AND {after_position}
    AND {is_due_for_expiry}
ORDER BY t.{stored_at}, {keys}
LIMIT %(page_rows)s

-- name: give_up
-- The payloads of these rows, in the versions that were read, are given up, and their objects listed for deletion.
-- A row that the application holds is passed over. One that holds a payload all the same is told, and undone by the caller.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH named AS MATERIALIZED (
    SELECT *
    FROM unnest({key_arrays}, %(xmins)s::text[]) WITH ORDINALITY AS s ({key_names_bare}, xmin_read, position)
),
k AS MATERIALIZED (
    SELECT
        named.*,
        t.{object_key} AS object_key,
        t.{size} AS size,
        {is_vacant} AS is_vacant
    FROM named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE t.xmin = named.xmin_read::xid
        AND {current_status} = 'in_storage'
    FOR NO KEY UPDATE OF t SKIP LOCKED
),
given_up AS (
    UPDATE {relation} AS t
    SET
        {payload} = {deleted_payload},
        {status} = 'expired',
        {size} = NULL,
        {object_key} = NULL,
        {hash} = NULL,
        {stored_at} = NULL
    FROM k
    WHERE {keys_match}
        AND t.xmin = k.xmin_read::xid
        AND {current_status} = 'in_storage'
    RETURNING
        k.position,
        k.object_key,
        k.size,
        t.{status} = 'expired' AND t.{object_key} IS NULL AS is_given_up,
        k.is_vacant
),
listed AS (
    INSERT INTO {expired} AS e (object_key, table_name, tenant_id, bytes)
    SELECT
        g.object_key,
        %(table)s,
        %(tenant)s,
        max(coalesce(g.size, 0))
    FROM given_up AS g
    WHERE g.object_key IS NOT NULL
    GROUP BY g.object_key
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
    is_vacant
FROM given_up

-- name: deleted_payload
-- What stands in the row for a payload that was given up.
jsonb_build_object('deleted', TRUE, 'deleted_at', clock_timestamp())
