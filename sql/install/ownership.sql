-- name: taken_relation
-- Of the relations that go by a bookkeeping table's name in this schema, one that is no such table: of another kind, or
-- without one of these columns. Locks: none.
SELECT
    c.relname::text,
    c.relkind = 'r' AS is_table,
    missing.column_name
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT w.column_name
    FROM unnest(%(tables)s::text[], %(columns)s::text[]) AS w (table_name, column_name)
    WHERE w.table_name = c.relname
        AND NOT EXISTS (
            SELECT
            FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = c.oid
                AND a.attname = w.column_name
                AND a.attnum > 0
                AND NOT a.attisdropped
        )
    ORDER BY w.column_name
    LIMIT 1
) AS missing ON TRUE
WHERE n.nspname = %(schema)s
    AND c.relname = ANY(%(tables)s)
    AND (c.relkind <> 'r' OR missing.column_name IS NOT NULL)
ORDER BY c.relname
LIMIT 1

-- name: taken_function
-- Of these functions, one that stands and is not ours: it returns something else, or its body lacks what ours has always
-- had and none of our triggers runs it. Functions of other arguments are no obstacle. Locks: none.
SELECT
    p.proname::text,
    w.arguments
FROM unnest(%(names)s::text[], %(arguments)s::text[], %(results)s::text[], %(marks)s::text[])
    AS w (name, arguments, result, mark)
JOIN pg_catalog.pg_proc AS p ON p.proname = w.name AND pg_catalog.oidvectortypes(p.proargtypes) = w.arguments
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = %(schema)s
    AND (
        pg_catalog.format_type(p.prorettype, NULL) <> w.result
        OR pg_catalog.strpos(coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc), w.mark) = 0
            AND NOT EXISTS (
                SELECT
                FROM pg_catalog.pg_trigger AS g
                WHERE g.tgfoid = p.oid
                    AND g.tgname = ANY(%(triggers)s)
            )
    )
ORDER BY p.proname
LIMIT 1

-- name: called_function
-- A function that applications call: its comment, what it returns, whether its body reads this table, and the installed
-- table that it reads instead, if one. Locks: none.
SELECT
    coalesce(pg_catalog.obj_description(p.oid, 'pg_proc'), ''),
    pg_catalog.format_type(p.prorettype, NULL),
    pg_catalog.strpos(p.prosrc, 'FROM ' || %(relation)s || ' AS t') > 0,
    ({other_table})
FROM pg_catalog.pg_proc AS p
WHERE p.oid = pg_catalog.to_regprocedure(%(signature)s)

-- name: other_table
-- A table other than this one that our guard watches over, and that the body of `p` reads.
SELECT g.tgrelid::pg_catalog.regclass::text
FROM pg_catalog.pg_trigger AS g
JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE g.tgname = %(guard)s
    AND g.tgrelid <> %(relation)s::pg_catalog.regclass
    AND pg_catalog.strpos(
        p.prosrc,
        'FROM "' || replace(n.nspname, '"', '""') || '"."' || replace(c.relname, '"', '""') || '" AS t'
    ) > 0
LIMIT 1
