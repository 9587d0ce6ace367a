-- name: unseen_page
-- One page of the rows that the trigger has never seen, in primary-key order. Locks: none. Index: <table>_offload_unseen.
SELECT {keys_as_text}
FROM {relation} AS t
WHERE t.{status} IS NULL
    AND {is_tenant}
    AND {after_cursor}
ORDER BY {keys}
LIMIT %(page_rows)s

-- name: pending_page
-- One page of the pending queue with the sizes it knows, in primary-key order. Locks: none. Index: <table>_offload_pending.
SELECT
    {keys_as_text},
    coalesce(t.{size}, 0)
FROM {relation} AS t
WHERE t.{status} = 'pending_move'
    AND {is_tenant}
    AND {after_cursor}
    AND {is_due}
ORDER BY {keys}
LIMIT %(page_rows)s

-- name: is_unseen
-- A condition on `t`: what a scan has ahead of it.
t.{status} IS NULL
    AND {is_tenant}
    AND {after_cursor}

-- name: is_pending
-- A condition on `t`: what a pass over the queue has ahead of it.
t.{status} = 'pending_move'
    AND {is_tenant}

-- name: count_up_to
-- Locks: none. Index: <table>_offload_unseen or <table>_offload_pending, so many entries at most.
SELECT count(*)
FROM (
    SELECT
    FROM {relation} AS t
    WHERE {is_ahead}
    LIMIT %(most)s
) AS ahead

-- name: pages
-- How many pages the table and its partitions have, without TOAST. Locks: none.
SELECT coalesce(sum(pg_relation_size(found.relation) / current_setting('block_size')::bigint), 0)::bigint
FROM (
    SELECT %(relation)s::regclass
    UNION
    SELECT relid
    FROM pg_partition_tree(%(relation)s::regclass)
) AS found (relation)

-- name: estimate
-- Rows in a random share of the table's pages, scaled up. Locks: none. Reads so many percent of the pages, without TOAST.
SELECT (count(*) * 100 / %(percent)s::double precision)::bigint
FROM {relation} AS t TABLESAMPLE SYSTEM (%(percent)s::double precision)
WHERE {is_ahead}

-- name: measure
-- Of these rows, the ones still never seen whose payload is above the threshold, with its bytes; each is printed once.
-- Locks: none. Index: the primary key.
SELECT
    k.position,
    printed.payload_bytes
FROM unnest({key_arrays}) WITH ORDINALITY AS k ({key_names_bare}, position)
CROSS JOIN LATERAL {row_of_key} AS t
CROSS JOIN LATERAL (SELECT octet_length(t.{payload}::text) AS payload_bytes OFFSET 0) AS printed
WHERE t.{status} IS NULL
    AND t.{payload} IS NOT NULL
    AND {is_tenant}
    AND (%(threshold_bytes)s = 0 OR printed.payload_bytes > %(threshold_bytes)s)
ORDER BY k.position
