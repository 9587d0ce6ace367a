-- name: see_every_row
-- A policy that would hide rows from this role becomes an error: an object named by a hidden row is no orphan.
SELECT set_config('row_security', 'off', TRUE)

-- name: pointer_columns
-- Every table that may hold pointers: the configured ones, their other partitions and detached ones, archives and
-- copies made by hand. Told by the column's name. Locks: none.
SELECT
    n.nspname,
    c.relname,
    a.attname
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
WHERE a.attname = ANY(%(columns)s)
    AND a.attnum > 0
    AND NOT a.attisdropped
    AND y.typcategory = 'S'
    AND c.relkind IN ('r', 'm')
    AND c.relispopulated
    AND c.relpersistence <> 't'
    AND c.relname NOT IN ('payload_offload_expired', 'payload_offload_deleted')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY n.nspname, c.relname, a.attname

-- name: named_in
-- Which of these object keys one table names. Locks: none. A sequential scan of the heap, without TOAST, unless the
-- application has an index on the column.
SELECT t.{column}::text
FROM {relation} AS t
WHERE t.{column} = ANY(%(object_keys)s::text[])

-- name: named_by_their_rows
-- The fast way: of these object keys, those that the row with the primary key in them names. Locks: none.
-- Index: the primary key.
SELECT k.position
FROM unnest({key_arrays}, %(object_keys)s::text[]) WITH ORDINALITY AS k ({key_names_bare}, object_key, position)
CROSS JOIN LATERAL {row_of_key} AS t
WHERE t.{object_key} = k.object_key

-- name: listed_as_expired
-- Which of these keys wait for their own time already. Locks: none. Index: the primary key.
SELECT object_key
FROM {expired}
WHERE object_key = ANY(%(object_keys)s::text[])
