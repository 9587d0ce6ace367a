-- name: claim_pending
-- One page of the pending queue, cut at the byte limit, each row claimed for this transaction.
-- Locks: advisory only, never a row. Index: <table>_offload_pending.
WITH page AS MATERIALIZED (
    SELECT
        {keys_as_text},
        {key_text} AS key_text,
        row_number() OVER (ORDER BY {keys}) AS position,
        coalesce(sum(coalesce(t.{size}, 0)) OVER (ORDER BY {keys} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
            AS bytes_before
    FROM {relation} AS t
    WHERE t.{status} = 'pending_move'
        AND {is_tenant}
        AND {after_cursor}
        AND {is_due}
    ORDER BY {keys}
    LIMIT %(batch_rows)s
)
SELECT
    {key_names},
    p.key_text,
    pg_try_advisory_xact_lock(hashtextextended(%(lock_space)s::text || p.key_text, 0)) AS claimed
FROM page AS p
WHERE p.bytes_before < %(batch_bytes)s
ORDER BY p.position

-- name: fetch_claimed
-- The claimed rows that are still pending or never seen, in a snapshot taken after the claim. Locks: none. Index: the primary key.
SELECT
    k.position,
    t.xmin::text,
    convert_to(t.{payload}::text, 'UTF8')
FROM unnest({key_arrays}) WITH ORDINALITY AS k ({key_names_bare}, position)
CROSS JOIN LATERAL {row_of_key} AS t
WHERE coalesce(t.{status}, 'pending_move') = 'pending_move'
    AND t.{payload} IS NOT NULL
    AND {is_tenant}

-- name: row_version
-- The version of a row whose payload cannot be read.
SELECT t.xmin::text
FROM unnest({key_arrays}) AS k ({key_names_bare})
CROSS JOIN LATERAL {row_of_key} AS t
