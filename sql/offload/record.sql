-- name: open_state
-- Creates or locks the partition's state row until commit; verification takes the same lock to set its mark.
-- Locks: that row. Index: its primary key.
INSERT INTO {state} AS s (tenant_id, table_name, store_url)
VALUES (%(tenant)s, %(table)s, %(store_url)s)
ON CONFLICT (tenant_id, table_name) DO UPDATE SET
    store_url = coalesce(s.store_url, excluded.store_url),
    updated_at = clock_timestamp()
RETURNING s.verification_mark, s.store_url

-- name: record_copied
-- Pointer and status for the rows whose objects were read back; the payload stays. A row changed since it was
-- read (its xmin) or locked by the application right now is left for the next pass.
-- stored_at stays above verification's mark even when the clock steps back.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH stored AS MATERIALIZED (
    SELECT *
    FROM unnest({key_arrays}, %(xmins)s::text[], %(sizes)s::bigint[], %(object_keys)s::text[], %(hashes)s::text[])
        WITH ORDINALITY AS s ({key_names_bare}, xmin_read, size, object_key, hash, position)
),
k AS MATERIALIZED (
    SELECT stored.*
    FROM stored
    JOIN {relation} AS t ON {keys_match_stored}
    WHERE t.xmin = stored.xmin_read::xid
        AND coalesce(t.{status}, 'pending_move') = 'pending_move'
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE {relation} AS t
SET
    {status} = 'copied',
    {size} = k.size,
    {object_key} = k.object_key,
    {hash} = k.hash,
    {stored_at} = greatest(clock_timestamp(), %(verification_mark)s::timestamptz + interval '1 microsecond')
FROM k
WHERE {keys_match}
    AND t.xmin = k.xmin_read::xid
    AND coalesce(t.{status}, 'pending_move') = 'pending_move'
RETURNING k.position, k.size

-- name: count_copied
-- Progress of the partition. Locks: the state row, which open_state holds already. Index: its primary key.
UPDATE {state}
SET
    rows_copied = rows_copied + %(rows)s,
    payload_bytes_copied = payload_bytes_copied + %(payload_bytes)s,
    object_bytes_copied = object_bytes_copied + %(object_bytes)s,
    updated_at = clock_timestamp()
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s

-- name: log_action
-- The audit line of a batch or pass. Locks: none.
INSERT INTO {log} (run_id, table_name, tenant_id, action, rows, bytes)
VALUES (%(run_id)s, %(table)s, %(tenant)s, %(action)s, %(rows)s, %(bytes)s)
