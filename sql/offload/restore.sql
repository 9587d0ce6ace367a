-- name: known_store
-- The store that the partition's objects are in. Locks: none. Index: the primary key.
SELECT store_url
FROM {state}
WHERE tenant_id = %(tenant)s
    AND table_name = %(table)s

-- name: next_page
-- One page of the partition's rows of one status, oldest first, cut at the byte limit. Locks: none.
-- Index: <table>_offload_stored or <table>_offload_copied; the primary key for one row.
WITH page AS MATERIALIZED (
    SELECT
        {keys_as_text},
        {stored_at_of_copy} AS stored_at,
        t.{object_key} AS object_key,
        t.{hash} AS hash,
        t.{size} AS size,
        t.xmin::text AS xmin_read,
        {is_empty} AS is_empty,
        row_number() OVER (ORDER BY t.{stored_at}, {keys}) AS position,
        coalesce(
            sum(coalesce(t.{size}, 0)) OVER (
                ORDER BY t.{stored_at}, {keys} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS bytes_before
    FROM {relation} AS t
    WHERE t.{status} = {walked_status}
        AND {is_tenant}
        AND {is_ahead}
        AND {is_chosen}
    ORDER BY t.{stored_at}, {keys}
    LIMIT %(page_rows)s
)
SELECT
    {key_names},
    p.stored_at,
    p.object_key,
    p.hash,
    p.size,
    p.xmin_read,
    p.is_empty
FROM page AS p
WHERE p.bytes_before < %(page_bytes)s
ORDER BY p.position

-- name: put_back
-- Payloads read from the store, into the rows that are still what they were when the page was read. The size that
-- stays marks the hold. A row changed since, or locked by the application right now, is left.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH named AS MATERIALIZED (
    SELECT *
    FROM unnest({key_arrays}, %(xmins)s::text[], %(object_keys)s::text[], %(payloads)b::bytea[])
        WITH ORDINALITY AS s ({key_names_bare}, xmin_read, object_key, payload, position)
),
k AS MATERIALIZED (
    SELECT named.*
    FROM named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE t.xmin = named.xmin_read::xid
        AND {current_status} = 'in_storage'
        AND t.{object_key} = named.object_key
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE {relation} AS t
SET
    {payload} = convert_from(k.payload, 'UTF8')::{payload_type},
    {status} = 'inline',
    {size} = octet_length(k.payload),
    {object_key} = NULL,
    {hash} = NULL,
    {stored_at} = NULL
FROM k
WHERE {keys_match}
    AND t.xmin = k.xmin_read::xid
    AND {current_status} = 'in_storage'
    AND t.{object_key} = k.object_key
RETURNING k.position

-- name: commit_to_disk
-- A database that commits before it writes could forget in a crash that the payload is back, after the object was
-- collected as one that no row names. Locks: none.
SELECT set_config('synchronous_commit', 'on', TRUE)
WHERE current_setting('synchronous_commit') = 'off'

-- name: held
-- What these rows hold after the update and all its triggers, by PostgreSQL's own hash, in the same transaction.
-- Locks: none. Index: the primary key.
SELECT
    k.position,
    t.{status} = 'inline' AND t.{size} IS NOT NULL AND t.{object_key} IS NULL AS is_held,
    encode(sha256(convert_to(t.{payload}::text, 'UTF8')), 'hex')
FROM unnest({key_arrays}) WITH ORDINALITY AS k ({key_names_bare}, position)
CROSS JOIN LATERAL {row_of_key} AS t

-- name: drop_pointers
-- Copies whose payload is still in the row: only the pointer goes, and the size that stays marks the hold.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH named AS MATERIALIZED (
    SELECT *
    FROM unnest({key_arrays}, %(xmins)s::text[]) WITH ORDINALITY AS s ({key_names_bare}, xmin_read, position)
),
k AS MATERIALIZED (
    SELECT named.*
    FROM named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE t.xmin = named.xmin_read::xid
        AND {current_status} = 'copied'
        AND t.{payload} IS NOT NULL
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE {relation} AS t
SET
    {status} = 'inline',
    {size} = coalesce(t.{size}, pg_column_size(t.{payload})),
    {object_key} = NULL,
    {hash} = NULL,
    {stored_at} = NULL
FROM k
WHERE {keys_match}
    AND t.xmin = k.xmin_read::xid
    AND {current_status} = 'copied'
RETURNING k.position

-- name: count_stored
-- What a restore of the partition has ahead of it. Locks: none. Index: <table>_offload_stored and <table>_offload_copied.
SELECT
    (SELECT count(*) FROM {relation} AS t WHERE t.{status} = 'in_storage' AND {is_tenant})
    + (SELECT count(*) FROM {relation} AS t WHERE t.{status} = 'copied' AND {is_tenant})

-- name: count_without_tenant
-- Rows in storage that belong to no partition. Locks: none. Index: <table>_offload_stored.
SELECT count(*)
FROM {relation} AS t
WHERE t.{status} = 'in_storage'
    AND t.{tenant_column} IS NULL

-- name: tenant_of_row
-- The tenant of one row. Locks: none. Index: the primary key.
SELECT {tenant_text}
FROM unnest({key_arrays}) AS k ({key_names_bare})
CROSS JOIN LATERAL {row_of_key} AS t
