-- name: lock_collection
-- Nobody else deletes, and verification sets no mark, until the transaction ends. Locks: advisory, exclusive; waits for
-- somebody else's chunk, some seconds as a rule.
SELECT pg_advisory_xact_lock(hashtextextended('offload_pipeline gc', 0))
FROM set_config('lock_timeout', '3min', TRUE)

-- name: try_objects
-- A writer holds the lock of an object from before its PUT until its row is committed. Locks: advisory; never waits.
SELECT
    k.object_key,
    pg_try_advisory_xact_lock(hashtextextended('offload_pipeline object ' || k.object_key, 0))
FROM unnest(%(object_keys)s::text[]) AS k (object_key)
