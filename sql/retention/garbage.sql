-- name: other_stores
-- Tables whose objects were copied to another store than this one. Locks: none.
SELECT
    table_name,
    min(store_url)
FROM {state}
WHERE store_url <> %(store_url)s
GROUP BY table_name

-- name: moment
-- Now, as a time and as the number of the next transaction.
SELECT
    clock_timestamp(),
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- name: older_transactions
-- How many transactions that have written, or are just at a statement, were there already at that moment. Where another role's
-- start is hidden, the numbers tell; prepared ones hold no session. Locks: none.
SELECT
    (
        SELECT count(*)
        FROM pg_catalog.pg_stat_activity AS a
        WHERE a.datname = current_database()
            AND a.pid <> pg_backend_pid()
            AND coalesce(a.backend_type, '') NOT IN ('autovacuum worker', 'walsender')
            AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL AND coalesce(a.state, 'active') = 'active')
            AND coalesce(
                a.xact_start <= %(since)s,
                n.next_transaction - greatest(age(a.backend_xid), age(a.backend_xmin)) < %(next_transaction)s
            )
    ) + (
        SELECT count(*)
        FROM pg_catalog.pg_prepared_xacts AS x
        WHERE x.database = current_database()
            AND n.next_transaction - age(x.transaction) < %(next_transaction)s
    )
FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_transaction) AS n
