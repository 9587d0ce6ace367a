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
