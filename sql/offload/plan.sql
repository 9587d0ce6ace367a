-- name: stay_modest
-- For this transaction: no statement longer than the session's own limit or ours, whichever is shorter, and never a whole
-- table read where a page or a row was named. Locks: none.
SELECT
    set_config('enable_seqscan', 'off', TRUE),
    set_config(
        'statement_timeout',
        CASE WHEN s.reset_val::bigint BETWEEN 1 AND %(limit_ms)s THEN s.reset_val ELSE %(limit_ms)s::text END,
        TRUE
    )
FROM pg_catalog.pg_settings AS s
WHERE s.name = 'statement_timeout'

-- name: leaves
-- The relations that hold the table's rows: itself, or its partitions and children, with pages, the rows that the
-- statistics know of (NULL: none), and bytes of heap, TOAST and indexes. Locks: none that wait.
WITH RECURSIVE tree AS (
    SELECT %(relation)s::regclass::oid AS oid
    UNION ALL
    SELECT i.inhrelid
    FROM tree
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.oid
    WHERE NOT i.inhdetachpending
),
sized AS (
    SELECT
        c.oid,
        n.nspname,
        c.relname,
        c.relkind,
        c.reltuples,
        pg_catalog.pg_relation_size(c.oid) AS main_bytes,
        coalesce(pg_catalog.pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS toast_bytes
    FROM tree
    JOIN pg_catalog.pg_class AS c ON c.oid = tree.oid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'f')
)
SELECT
    nspname::text,
    relname::text,
    relkind = 'f' AS is_foreign,
    (main_bytes / current_setting('block_size')::bigint)::bigint AS pages,
    CASE WHEN reltuples > 0 THEN reltuples::bigint END AS rows_in_statistics,
    pg_catalog.pg_table_size(oid) - toast_bytes AS heap_bytes,
    toast_bytes,
    pg_catalog.pg_indexes_size(oid) AS index_bytes
FROM sized
ORDER BY oid

-- name: rows_of_pages
-- The rows on these pages of one relation, judged without touching TOAST: where, bytes as stored, compressed or not, state.
-- OFFSET 0 keeps the inner query a TID range scan per page. Locks: none. Index: none, pages are read by number.
SELECT
    b.position - 1,
    s.*
FROM unnest(%(pages)s::bigint[]) WITH ORDINALITY AS b (page, position)
CROSS JOIN LATERAL (
    SELECT
        t.ctid::text,
        pg_catalog.pg_column_size(t.{payload}),
        pg_catalog.pg_column_compression(t.{payload}) IS NOT NULL,
        {state},
        {tenant_text} IS NOT NULL
    FROM ONLY {leaf} AS t
    WHERE t.ctid >= ('(' || b.page || ',0)')::tid
        AND t.ctid < ('(' || b.page + 1 || ',0)')::tid
    OFFSET 0
) AS s

-- name: payloads
-- These rows' payloads, canonical. Locks: none. Index: none, rows are read by their place.
SELECT
    {keys_as_text},
    t.ctid::text,
    {tenant_text},
    convert_to(t.{payload}::text, 'UTF8')
FROM ONLY {leaf} AS t
WHERE t.ctid = ANY(%(tids)s::tid[])

-- name: why_no_lz4
-- What keeps this session from trying lz4 on a temporary table; NULL: nothing does. Locks: none.
SELECT CASE
    WHEN NOT 'lz4' = ANY(s.enumvals) THEN 'this server was built without lz4'
    WHEN current_setting('transaction_read_only')::boolean THEN 'transactions are read-only here'
    WHEN NOT pg_catalog.has_database_privilege(current_database(), 'TEMPORARY')
        THEN current_user || ' may not create temporary tables'
END
FROM pg_catalog.pg_settings AS s
WHERE s.name = 'default_toast_compression'

-- name: create_lz4_table
-- Locks: none that anybody else can see; gone with the transaction, which is rolled back.
CREATE TEMPORARY TABLE offload_plan_lz4 (
    leaf integer NOT NULL,
    tid tid NOT NULL,
    payload {payload_type} COMPRESSION lz4
)

-- name: fill_lz4_table
-- As text in between: a stored value would be copied in the compression it has. Locks: none.
INSERT INTO pg_temp.offload_plan_lz4 (leaf, tid, payload)
SELECT
    %(leaf)s,
    t.ctid,
    (t.{payload}::text || '')::{payload_type}
FROM ONLY {leaf} AS t
WHERE t.ctid = ANY(%(tids)s::tid[])

-- name: lz4_sizes
-- Locks: none.
SELECT
    leaf,
    tid::text,
    pg_catalog.pg_column_size(payload)
FROM pg_temp.offload_plan_lz4
