-- name: is_vacant
-- A condition on `t`, a row in storage: it holds nothing itself, or the reference to what it has in storage. Anything else
-- was written past the trigger, and is in no object. Locks: none.
(
    t.{payload} IS NULL
    OR strpos(t.{payload}::text, '"storage_ref"') > 0
        AND strpos(t.{payload}::text, coalesce(t.{hash}, '')) > 0
)
