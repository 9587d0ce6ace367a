-- name: forget
-- Deletions asked for so long ago that none can still be on its way. Locks: the lines. A small table, read whole.
DELETE FROM {deleted}
WHERE asked_at < clock_timestamp() - %(lingering)s::interval

-- name: announce
-- Committed before the store is asked. Locks: the lines. Index: the primary key.
INSERT INTO {deleted} (object_key)
SELECT k.object_key
FROM unnest(%(object_keys)s::text[]) AS k (object_key)
ON CONFLICT (object_key) DO UPDATE SET asked_at = clock_timestamp()

-- name: withdraw
-- Locks: the lines. Index: the primary key.
DELETE FROM {deleted}
WHERE object_key = ANY(%(object_keys)s::text[])

-- name: announced
-- Of these objects, the ones whose deletion was asked for lately. Locks: none. Index: the primary key.
SELECT object_key
FROM {deleted}
WHERE object_key = ANY(%(object_keys)s::text[])
    AND asked_at >= clock_timestamp() - %(lingering)s::interval
