-- name: requeue
-- A copy that did not verify is made again: the payload is still in the row. Locks: the rows, never waits.
WITH named AS MATERIALIZED (
    SELECT *
    FROM unnest({key_arrays}, %(object_keys)s::text[]) AS s ({key_names_bare}, object_key)
),
k AS MATERIALIZED (
    SELECT named.*
    FROM named
    JOIN {relation} AS t ON {keys_match_named}
    WHERE t.{object_key} IS NOT DISTINCT FROM named.object_key
        AND {current_status} = 'copied'
        AND t.{payload} IS NOT NULL
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE {relation} AS t
SET
    {status} = 'pending_move',
    {object_key} = NULL,
    {hash} = NULL,
    {stored_at} = NULL
FROM k
WHERE {keys_match}
    AND {current_status} = 'copied'
    AND t.{object_key} IS NOT DISTINCT FROM k.object_key
