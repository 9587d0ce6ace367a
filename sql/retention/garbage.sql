-- name: other_stores
-- Tables whose objects were copied to another store than this one. Locks: none.
SELECT
    table_name,
    min(store_url)
FROM {state}
WHERE store_url <> %(store_url)s
GROUP BY table_name
