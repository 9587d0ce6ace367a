-- name: read_row
-- One row: where its payload is, and the canonical bytes if it is here. Index: the primary key.
SELECT
    t.{status},
    t.{stored_at},
    t.{object_key},
    t.{hash},
    t.{size},
    convert_to(t.{payload}::text, 'UTF8')
FROM unnest({key_arrays}) AS k ({key_names_bare})
JOIN {relation} AS t ON {keys_match}

-- name: all_copies
-- One page of every row with a pointer, in primary-key order. Locks: none. Index: the primary key.
SELECT
    {keys_as_text},
    t.{stored_at},
    t.{object_key},
    t.{hash},
    t.{size}
FROM {relation} AS t
WHERE t.{object_key} IS NOT NULL
    AND t.{status} IN ('copied', 'in_storage')
    AND {is_tenant}
    AND {after_cursor}
ORDER BY {keys}
LIMIT %(page_rows)s
