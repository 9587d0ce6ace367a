-- name: lacking
-- Which of these privileges the current role lacks: on a column, or on the table where no column is named; and USAGE on
-- the tables' schemas (no table, then). What does not exist is passed over. Locks: none; reads the catalog.
SELECT
    format('%%I', n.nspname) AS object_name,
    TRUE AS is_schema,
    'USAGE' AS privilege,
    format('%%I', current_user) AS role_name
FROM pg_catalog.pg_namespace AS n
WHERE n.nspname = ANY(%(schemas)s)
    AND NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
(
    SELECT
        format('%%I.%%I', w.schema_name, w.table_name),
        FALSE,
        w.privilege,
        format('%%I', current_user)
    FROM unnest(%(schemas)s::text[], %(tables)s::text[], %(columns)s::text[], %(privileges)s::text[])
        WITH ORDINALITY AS w (schema_name, table_name, column_name, privilege, position)
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = w.schema_name
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name
    LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = w.column_name
    WHERE NOT CASE
        WHEN w.column_name IS NULL THEN has_table_privilege(c.oid, w.privilege)
        ELSE a.attnum IS NULL OR has_column_privilege(c.oid, a.attnum, w.privilege)
    END
    GROUP BY w.schema_name, w.table_name, w.privilege
    ORDER BY min(w.position)
)

-- name: sees_the_load
-- Whether this role may see what back-pressure looks at, and its name. Locks: none.
SELECT
    pg_has_role('pg_read_all_stats', 'USAGE')
        AND has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE'),
    quote_ident(current_user)
