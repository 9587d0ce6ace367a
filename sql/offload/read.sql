-- name: read_rows
-- Where these rows' payloads are, and the canonical bytes of those that are still in their rows; in the order of the
-- keys, up to the row that passes the byte limit. Locks: none. Index: the primary key.
SELECT
    p.is_found,
    p.status,
    p.stored_at,
    p.object_key,
    p.sha256,
    p.size,
    p.tenant,
    s.store_url,
    convert_to(p.payload::text, 'UTF8')
FROM (
    SELECT
        k.position,
        t.ctid IS NOT NULL AS is_found,
        t.{status} AS status,
        {stored_at_of_copy} AS stored_at,
        t.{object_key} AS object_key,
        t.{hash} AS sha256,
        t.{size} AS size,
        {tenant_text} AS tenant,
        t.{payload} AS payload,
        coalesce(
            sum(coalesce(t.{size}, pg_column_size(t.{payload}), 0))
                OVER (ORDER BY k.position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
            0
        ) AS bytes_before
    FROM unnest({key_arrays}) WITH ORDINALITY AS k ({key_names_bare}, position)
    LEFT JOIN LATERAL {row_of_key} AS t ON TRUE
) AS p
LEFT JOIN {state} AS s ON s.table_name = %(table)s AND s.tenant_id = p.tenant
WHERE p.bytes_before < %(page_bytes)s
ORDER BY p.position

-- name: all_copies
-- One page of every row with a pointer, in primary-key order. Locks: none. Index: the primary key.
SELECT
    {named_object}
FROM {relation} AS t
WHERE t.{object_key} IS NOT NULL
    AND t.{status} IN ('copied', 'in_storage')
    AND {is_tenant}
    AND {after_cursor}
ORDER BY {keys}
LIMIT %(page_rows)s
