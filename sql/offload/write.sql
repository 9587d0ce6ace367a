-- name: canonical
-- The canonical bytes of what an application is about to write, on its own connection and whatever its settings:
-- bytes go in and come out, so that no client encoding has a say. Locks: none.
SELECT convert_to(convert_from(%(payload)b::bytea, 'UTF8')::{payload_type}::text, 'UTF8')

-- name: lock_object
-- Keeps garbage collection, which takes the same lock, from the object until the application's transaction ends; and a
-- second writer of this payload for the same row, who would otherwise put an object over the first one's while only the
-- first can know of it. That one waits, as it would at its INSERT. Locks: advisory.
SELECT pg_advisory_xact_lock(hashtextextended('offload_pipeline object ' || %(object_key)s::text, 0))

-- name: share_object
-- The same where rows share objects: who writes one payload for different rows need not wait for each other.
-- Locks: advisory, shared.
SELECT pg_advisory_xact_lock_shared(hashtextextended('offload_pipeline object ' || %(object_key)s::text, 0))

-- name: names_object
-- Whether the row names this object already. Locks: none. Index: the primary key.
SELECT EXISTS (
    SELECT
    FROM unnest({key_arrays}) AS k ({key_names_bare})
    CROSS JOIN LATERAL {row_of_key} AS t
    WHERE t.{object_key} = %(object_key)s
        AND t.{status} IN ('copied', 'in_storage')
)

-- name: place
-- The tenant and the key as PostgreSQL prints them, and the store that the partition's objects are in.
-- Locks: none. Index: the primary key of the state table.
SELECT
    {key_names},
    p.tenant,
    s.store_url
FROM (SELECT {given_keys}, {given_tenant} AS tenant) AS p
LEFT JOIN {state} AS s ON s.table_name = %(table)s AND s.tenant_id = p.tenant

-- name: pointer
-- What the row is to say of an object that stands: when, and what takes the payload's place. Locks: none.
SELECT
    t.{stored_at},
    ({placeholder})::text
FROM (
    SELECT
        %(object_key)s::text AS {object_key},
        %(hash)s::text AS {hash},
        %(size)s::bigint AS {size},
        clock_timestamp() AS {stored_at}
) AS t
