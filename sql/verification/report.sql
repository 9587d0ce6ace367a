-- name: sizes
-- Bytes of heap (with its maps), TOAST and indexes, and an estimate of the rows: pages and density as ANALYZE or VACUUM
-- last saw them, scaled to the file's size now, in which dead rows count as well; so no more than the counters of what
-- was written since then say. A partitioned table is the sum of its leaves.
-- Locks: ACCESS SHARE for an instant. Index: the catalog's.
WITH part AS (
    SELECT
        c.oid,
        c.reltoastrelid,
        c.relpages,
        c.reltuples,
        pg_catalog.pg_relation_size(c.oid) AS main_bytes,
        CASE WHEN num_nonnulls(
            pg_catalog.pg_stat_get_last_vacuum_time(c.oid),
            pg_catalog.pg_stat_get_last_autovacuum_time(c.oid),
            pg_catalog.pg_stat_get_last_analyze_time(c.oid),
            pg_catalog.pg_stat_get_last_autoanalyze_time(c.oid)
        ) > 0 THEN pg_catalog.pg_stat_get_live_tuples(c.oid) END AS live_rows
    FROM pg_catalog.pg_class AS c
    WHERE c.oid = ANY(
        SELECT p.relid
        FROM pg_catalog.pg_partition_tree(%(relation)s::regclass) AS p
        WHERE p.isleaf
        UNION ALL
        SELECT %(relation)s::regclass
    )
        AND c.relkind = 'r'
)
SELECT
    coalesce(sum(
        pg_catalog.pg_table_size(part.oid)
        - coalesce(pg_catalog.pg_total_relation_size(nullif(part.reltoastrelid, 0)), 0)
    ), 0)::bigint AS heap_bytes,
    coalesce(sum(pg_catalog.pg_total_relation_size(nullif(part.reltoastrelid, 0))), 0)::bigint AS toast_bytes,
    coalesce(sum(pg_catalog.pg_indexes_size(part.oid)), 0)::bigint AS index_bytes,
    coalesce(sum(part.main_bytes), 0)::bigint AS main_bytes,
    CASE WHEN bool_and(part.relpages > 0 OR part.main_bytes = 0) THEN sum(least(
        part.live_rows,
        part.reltuples * part.main_bytes / nullif(part.relpages, 0) / current_setting('block_size')::integer
    ))::bigint END AS rows
FROM part

-- name: index_sizes
-- Bytes of each of our partial indexes, and an estimate of its rows, made as in `sizes`.
-- Locks: ACCESS SHARE for an instant. Index: the catalog's.
WITH part AS (
    SELECT
        substring(c.relname FROM '_offload_(unseen|pending|copied|stored)$') AS title,
        c.relpages,
        c.reltuples,
        pg_catalog.pg_relation_size(c.oid) AS main_bytes
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = ANY(
        SELECT p.relid
        FROM pg_catalog.pg_partition_tree(%(relation)s::regclass) AS p
        WHERE p.isleaf
        UNION ALL
        SELECT %(relation)s::regclass
    )
        AND i.indisvalid
        AND c.relkind = 'i'
        AND c.relname ~ '_offload_(unseen|pending|copied|stored)$'
)
SELECT
    part.title,
    sum(part.main_bytes)::bigint,
    CASE WHEN bool_and(part.relpages > 0) THEN sum(
        part.reltuples * part.main_bytes / nullif(part.relpages, 0) / current_setting('block_size')::integer
    )::bigint END
FROM part
GROUP BY part.title

-- name: count_rows
-- For a table of a few megabytes; with those whose payload was restored and is held. Locks: none. Reads the heap.
SELECT
    count(*),
    count(*) FILTER (WHERE t.{status} = 'inline' AND t.{size} IS NOT NULL),
    coalesce(sum(t.{size}) FILTER (WHERE t.{status} = 'inline'), 0)::bigint
FROM {relation} AS t

-- name: count_in_state
-- For an index of a few megabytes. Locks: none. Index: <table>_offload_unseen or <table>_offload_stored.
SELECT count(*)
FROM {relation} AS t
WHERE t.{status} {has_status}

-- name: weigh_state
-- For an index of a few megabytes; index-only on a vacuumed table.
-- Locks: none. Index: <table>_offload_pending or <table>_offload_copied.
SELECT
    count(*),
    coalesce(sum(t.{size}), 0)::bigint
FROM {relation} AS t
WHERE t.{status} {has_status}

-- name: progress
-- What was done in all, how far the gates are, and how old the oldest full reading is. Locks: none.
SELECT
    count(*),
    count(*) FILTER (WHERE verified_through IS NULL),
    min(verified_through),
    CASE WHEN bool_and(fully_verified_at IS NOT NULL) THEN min(fully_verified_at) END,
    coalesce(sum(rows_copied), 0)::bigint,
    coalesce(sum(payload_bytes_copied), 0)::bigint,
    coalesce(sum(object_bytes_copied), 0)::bigint
FROM {state}
WHERE table_name = %(table)s

-- name: never_scanned
-- Rows older than the trigger by tenant, of tenants whose backfill has not come to its end; in all no more than asked for.
-- Hops from tenant to tenant in the index. Locks: none. Index: <table>_offload_unseen.
WITH RECURSIVE hop AS (
    (
        SELECT t.{tenant_column} AS tenant
        FROM {relation} AS t
        WHERE t.{status} IS NULL
            AND t.{tenant_column} IS NOT NULL
        ORDER BY t.{tenant_column}
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT t.{tenant_column}
        FROM {relation} AS t
        WHERE t.{status} IS NULL
            AND t.{tenant_column} > hop.tenant
        ORDER BY t.{tenant_column}
        LIMIT 1
    )
    FROM hop
    WHERE hop.tenant IS NOT NULL
)
SELECT
    found.tenant,
    count(*)
FROM (
    SELECT hop.tenant::text AS tenant
    FROM hop
    CROSS JOIN LATERAL (
        SELECT
        FROM {relation} AS t
        WHERE t.{status} IS NULL
            AND t.{tenant_column} = hop.tenant
        -- Also keeps the planner from joining by going through every tenant's entries.
        LIMIT %(most_rows)s
    ) AS t
    WHERE NOT EXISTS (
        SELECT
        FROM {state} AS s
        WHERE s.table_name = %(table)s
            AND s.tenant_id = hop.tenant::text
            AND s.backfilled_at IS NOT NULL
    )
    LIMIT %(most_rows)s
) AS found
GROUP BY found.tenant
ORDER BY found.tenant

-- name: never_scanned_of_the_one_tenant
-- The same for a table of one constant tenant. Locks: none. Index: <table>_offload_unseen.
SELECT
    found.tenant,
    count(*)
FROM (
    SELECT {tenant_text} AS tenant
    FROM {relation} AS t
    WHERE t.{status} IS NULL
        AND NOT EXISTS (
            SELECT
            FROM {state} AS s
            WHERE s.table_name = %(table)s
                AND s.tenant_id = {tenant_text}
                AND s.backfilled_at IS NOT NULL
        )
    LIMIT %(most_rows)s
) AS found
GROUP BY found.tenant
