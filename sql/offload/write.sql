-- name: canonical
-- The canonical bytes of what an application is about to write, on its own connection and whatever its settings:
-- bytes go in and come out, so that no client encoding has a say. Locks: none.
SELECT convert_to(convert_from(%(payload)b::bytea, 'UTF8')::{payload_type}::text, 'UTF8')

-- name: lock_object
-- Keeps garbage collection, which takes the same lock alone, from the object until the application's transaction ends.
-- Shared, so that writers of one payload never wait for each other. Locks: advisory.
SELECT pg_advisory_xact_lock_shared(hashtextextended('offload_pipeline object ' || %(object_key)s::text, 0))

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
