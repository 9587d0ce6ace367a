-- name: relation
-- oid and kind of a table by its exact name.
SELECT c.oid, c.relkind::text
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s
    AND c.relname = %(name)s

-- name: same_name_other_case
-- For the hint when a table is not found.
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE lower(c.relname) = lower(%(name)s)
    AND c.relkind IN ('r', 'p')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY n.nspname
LIMIT 1

-- name: columns
-- Columns with the SQL form of their types; a domain shows its base type.
SELECT
    a.attname,
    pg_catalog.format_type(CASE WHEN y.typtype = 'd' THEN y.typbasetype ELSE a.atttypid END, -1),
    a.attnotnull
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
WHERE a.attrelid = %(relation)s
    AND a.attnum > 0
    AND NOT a.attisdropped
ORDER BY a.attnum

-- name: unique_keys
-- The column sets that identify a row: primary key first, then plain unique indexes over NOT NULL columns.
SELECT
    array_agg(a.attname::text ORDER BY a.attname),
    i.indisprimary
FROM pg_catalog.pg_index AS i
CROSS JOIN LATERAL unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (attnum)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = %(relation)s::regclass
    AND i.indisunique
    AND i.indisvalid
    AND i.indpred IS NULL
    AND i.indexprs IS NULL
GROUP BY i.indexrelid, i.indisprimary
HAVING bool_and(a.attnotnull)
ORDER BY i.indisprimary DESC

-- name: privileges
-- What the current role lacks for install: ownership, or membership in the owner; CREATE on both schemas.
SELECT
    pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owns_table,
    ARRAY(
        SELECT s.name
        FROM unnest(ARRAY[%(schema)s, %(bookkeeping_schema)s]) AS s (name)
        WHERE NOT pg_catalog.has_schema_privilege(s.name, 'CREATE')
            OR NOT pg_catalog.has_schema_privilege(s.name, 'USAGE')
    ) AS closed_schemas,
    c.relispartition,
    current_user::text,
    pg_catalog.pg_get_userbyid(c.relowner)::text AS owner
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s
    AND c.relname = %(name)s

-- name: derived_columns
-- Generated columns that read the payload; they would become NULL when it is freed.
SELECT a.attname::text
FROM pg_catalog.pg_attrdef AS d
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
JOIN pg_catalog.pg_depend AS p ON p.classid = 'pg_catalog.pg_attrdef'::regclass AND p.objid = d.oid
JOIN pg_catalog.pg_attribute AS source ON source.attrelid = p.refobjid AND source.attnum = p.refobjsubid
WHERE d.adrelid = %(relation)s::regclass
    AND a.attgenerated <> ''
    AND p.refclassid = 'pg_catalog.pg_class'::regclass
    AND p.refobjid = d.adrelid
    AND source.attname = %(payload)s
ORDER BY a.attnum

-- name: loose_columns
-- Of these columns, the ones whose equality is not equality of text: nondeterministic collations, citext.
SELECT a.attname::text
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
LEFT JOIN pg_catalog.pg_collation AS c ON c.oid = a.attcollation
WHERE a.attrelid = %(relation)s::regclass
    AND a.attname = ANY(%(columns)s)
    AND (y.typname = 'citext' OR NOT coalesce(c.collisdeterministic, TRUE))

-- name: short_columns
-- Of these columns, the ones declared with a length: what does not fit would fail the application's own INSERT.
SELECT
    a.attname::text,
    pg_catalog.format_type(a.atttypid, a.atttypmod)
FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = %(relation)s::regclass
    AND a.attname = ANY(%(columns)s)
    AND a.atttypid = 'varchar'::regtype
    AND a.atttypmod <> -1

-- name: partition_root
-- The partitioned table that a partition is part of, the topmost; no row where it is no partition.
SELECT pg_catalog.pg_partition_root(c.oid)::text
FROM pg_catalog.pg_class AS c
WHERE c.oid = %(relation)s::regclass
    AND c.relispartition

-- name: has_children
-- Whether other tables inherit from this one.
SELECT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = %(relation)s::regclass)

-- name: name_taken_by
-- Another table whose triggers run this table's function.
SELECT g.tgrelid::regclass::text
FROM pg_catalog.pg_trigger AS g
WHERE g.tgfoid = pg_catalog.to_regproc(%(function)s)::oid
    AND g.tgrelid <> %(relation)s::regclass
LIMIT 1

-- name: schema_exists
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)

-- name: description
-- The comment that carries the fingerprint of what was installed.
SELECT pg_catalog.obj_description(t.oid, 'pg_trigger')
FROM pg_catalog.pg_trigger AS t
WHERE t.tgrelid = %(relation)s::regclass
    AND t.tgname = %(name)s

-- name: index_state
-- Whether the index stands and is valid; an interrupted CREATE INDEX CONCURRENTLY leaves an invalid one.
SELECT i.indisvalid, pg_catalog.obj_description(i.indexrelid, 'pg_class')
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = %(relation)s::regclass
    AND c.relname = %(name)s

-- name: column_default
SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid)
FROM pg_catalog.pg_attrdef AS d
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
WHERE d.adrelid = %(relation)s::regclass
    AND a.attname = %(name)s

-- name: offload_indexes
-- Which of the queue's indexes stand, and whether each is valid. A long table name is cut, the ending never is.
SELECT
    substring(c.relname FROM '_offload_(unseen|pending|copied|stored)$'),
    i.indisvalid
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = %(relation)s::regclass
    AND c.relname ~ '_offload_(unseen|pending|copied|stored)$'

-- name: trigger_modes
-- D: disabled; R: fires on replicas only; O and A: fires for the application.
SELECT
    t.tgname::text,
    t.tgenabled::text
FROM pg_catalog.pg_trigger AS t
WHERE t.tgrelid = %(relation)s::regclass
    AND NOT t.tgisinternal

-- name: access
-- Whether policies filter what the current role sees of the table, and whether it is the owner's equal.
SELECT
    pg_catalog.row_security_active(c.oid) AS hides_rows,
    pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owns_table,
    current_user::text,
    pg_catalog.pg_get_userbyid(c.relowner)::text AS owner
FROM pg_catalog.pg_class AS c
WHERE c.oid = %(relation)s::regclass
