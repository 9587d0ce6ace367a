-- name: count_listed
-- Objects that expiry or erasure listed, all and those past the grace. Locks: none.
SELECT
    count(*),
    coalesce(sum(bytes), 0)::bigint,
    count(*) FILTER (WHERE expired_at <= clock_timestamp() - %(grace)s::interval),
    coalesce(sum(bytes) FILTER (WHERE expired_at <= clock_timestamp() - %(grace)s::interval), 0)::bigint
FROM {expired}
WHERE table_name = ANY(%(tables)s)
    AND (%(one_tenant)s::text IS NULL OR tenant_id = %(one_tenant)s)

-- name: due
-- One page of the listed objects past the grace. Under the collection lock, nobody else strikes them off meanwhile.
-- Locks: none. Index: the primary key.
SELECT
    object_key,
    table_name,
    tenant_id
FROM {expired}
WHERE table_name = ANY(%(tables)s)
    AND (%(one_tenant)s::text IS NULL OR tenant_id = %(one_tenant)s)
    AND expired_at <= clock_timestamp() - %(grace)s::interval
    AND object_key > %(after_key)s
ORDER BY object_key
LIMIT %(page_rows)s

-- name: strike_off
-- Objects that are gone, or that a row names again. Locks: the lines, until commit. Index: the primary key.
DELETE FROM {expired}
WHERE object_key = ANY(%(object_keys)s::text[])
