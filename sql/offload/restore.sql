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
        t.{stored_at} AS stored_at,
        t.{object_key} AS object_key,
        t.{hash} AS hash,
        t.{size} AS size,
        t.xmin::text AS xmin_read,
        t.{payload} IS NULL AS is_empty,
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
        AND t.{status} = 'in_storage'
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
    AND t.{status} = 'in_storage'
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
JOIN {relation} AS t ON {keys_match}

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
        AND t.{status} = 'copied'
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
    AND t.{status} = 'copied'
RETURNING k.position

-- name: lift_holds
-- One page of the tenant's rows in primary-key order; of them, the held ones above the threshold become pending.
-- Payloads are measured before the first row is locked. A row that the application holds is left.
-- Locks: the rows, NO KEY UPDATE, never waits. Index: the primary key.
WITH named AS MATERIALIZED (
    SELECT
        {keys_as_text},
        t.xmin::text AS xmin_read,
        row_number() OVER (ORDER BY {keys}) AS position,
        CASE
            WHEN t.{status} = 'inline' AND t.{size} IS NOT NULL THEN octet_length(t.{payload}::text)
        END AS payload_bytes
    FROM {relation} AS t
    WHERE {is_tenant}
        AND {after_cursor}
    ORDER BY {keys}
    LIMIT %(page_rows)s
),
above AS MATERIALIZED (
    SELECT named.*
    FROM named
    WHERE named.payload_bytes > %(threshold_bytes)s
        OR (%(threshold_bytes)s = 0 AND named.payload_bytes IS NOT NULL)
),
k AS MATERIALIZED (
    SELECT named.*
    FROM above AS named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE t.xmin = named.xmin_read::xid
        -- CTEs run row by row: without this, the first rows would be locked while the last are still measured.
        AND (SELECT count(*) FROM above) > 0
    FOR NO KEY UPDATE OF t SKIP LOCKED
),
lifted AS (
    UPDATE {relation} AS t
    SET
        {status} = 'pending_move',
        {size} = k.payload_bytes
    FROM k
    WHERE {keys_match}
        AND t.xmin = k.xmin_read::xid
    RETURNING k.position
)
SELECT
    {key_names},
    a.payload_bytes,
    l.position IS NOT NULL AS is_lifted
FROM named AS p
LEFT JOIN above AS a ON a.position = p.position
LEFT JOIN lifted AS l ON l.position = p.position
ORDER BY p.position

-- name: count_held
-- For a dry run: held rows above the threshold and their bytes. Locks: none. Reads the table, and each held payload.
SELECT
    count(*),
    coalesce(sum(octet_length(t.{payload}::text)), 0)::bigint
FROM {relation} AS t
WHERE t.{status} = 'inline'
    AND t.{size} IS NOT NULL
    AND t.{payload} IS NOT NULL
    AND {is_tenant}
    AND (%(threshold_bytes)s = 0 OR octet_length(t.{payload}::text) > %(threshold_bytes)s)

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

-- name: stored_tenants
-- The tenants that have rows of one status, hopping from one to the next in the index.
-- Locks: none. Index: <table>_offload_stored or <table>_offload_copied.
WITH RECURSIVE hop AS (
    (
        SELECT t.{tenant_column} AS tenant
        FROM {relation} AS t
        WHERE t.{status} = {walked_status}
            AND t.{tenant_column} IS NOT NULL
        ORDER BY t.{tenant_column}
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT t.{tenant_column}
        FROM {relation} AS t
        WHERE t.{status} = {walked_status}
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

-- name: tenant_of_row
-- The tenant of one row. Locks: none. Index: the primary key.
SELECT {tenant_text}
FROM unnest({key_arrays}) AS k ({key_names_bare})
JOIN {relation} AS t ON {keys_match}
