-- name: replica_lag
-- The connected standby or subscriber that has replayed least, in bytes behind this server. What takes a base backup or
-- only receives replays nothing, and has no lag. Positions are visible to members of pg_read_all_stats alone.
-- Locks: none; reads shared memory.
SELECT
    pg_has_role('pg_read_all_stats', 'USAGE'),
    r.application_name,
    pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn)::bigint AS bytes_behind
FROM pg_stat_replication AS r
ORDER BY bytes_behind DESC NULLS LAST
LIMIT 1

-- name: archiving
-- Whether this server archives its WAL, and whether this role may list what waits. Locks: none.
SELECT
    current_setting('archive_mode') <> 'off',
    has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE')

-- name: wal_files_listed
-- Locks: none; reads one folder.
SELECT count(*)
FROM pg_ls_archive_statusdir()
WHERE right(name, 6) = '.ready'

-- name: wal_files_reckoned
-- For a role that may not list the folder: whole segments between the last one archived and the one being written. Where
-- none was archived yet, the one that fails is the oldest that waits. No line where neither is known.
-- Locks: none; reads shared memory.
SELECT greatest(0, div(pg_current_wal_lsn() - pg_lsn '0/0', segment.bytes) - last.number - 1)::bigint
FROM (SELECT pg_size_bytes(current_setting('wal_segment_size')) AS bytes) AS segment
CROSS JOIN LATERAL (
    SELECT
        ('x' || substr(file.name, 9, 8))::bit(32)::bigint * (4294967296 / segment.bytes)
            + ('x' || substr(file.name, 17, 8))::bit(32)::bigint
            - file.is_waiting AS number
    FROM pg_stat_archiver AS a
    CROSS JOIN LATERAL (VALUES (a.last_archived_wal, 0), (a.last_failed_wal, 1)) AS file (name, is_waiting)
    WHERE file.name ~ '^[0-9A-F]{{24}}'
    ORDER BY file.is_waiting
    LIMIT 1
) AS last

-- name: autovacuum
-- The table, its TOAST table or its partition that an autovacuum worker has been working on for less than `patience`.
-- Visible to members of pg_read_all_stats alone. Locks: none; reads shared memory, the catalog only during a vacuum.
SELECT
    pg_has_role('pg_read_all_stats', 'USAGE'),
    (
        SELECT v.relid::regclass::text
        FROM pg_stat_progress_vacuum AS v
        JOIN pg_stat_activity AS a ON a.pid = v.pid
        LEFT JOIN pg_class AS whole ON whole.reltoastrelid = v.relid
        WHERE v.datname = current_database()
            AND a.backend_type = 'autovacuum worker'
            AND a.xact_start > clock_timestamp() - %(patience)s::interval
            AND %(relation)s::regclass IN (
                SELECT coalesce(whole.oid, v.relid)
                UNION ALL
                SELECT p.relid::oid
                FROM pg_partition_ancestors(coalesce(whole.oid, v.relid)) AS p
            )
        LIMIT 1
    )
