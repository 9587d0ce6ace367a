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
