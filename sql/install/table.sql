-- name: add_columns
-- ACCESS EXCLUSIVE for an instant: no default is written, so existing rows stay NULL, "never seen by the trigger".
ALTER TABLE {relation} {columns}

-- name: set_default
-- New rows are inline unless the trigger says otherwise.
ALTER TABLE {relation} ALTER COLUMN {status} SET DEFAULT 'inline'

-- name: trigger_function
-- Keeps status and pointer true to the payload, whoever writes it. Locks: none.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $offload$
DECLARE
    is_placeholder boolean := NEW.{payload} IS NULL;
    is_new_pointer boolean := TG_OP = 'INSERT';
    is_complete boolean := NEW.{object_key} IS NOT NULL AND NEW.{hash} IS NOT NULL AND NEW.{size} IS NOT NULL;
BEGIN
    -- A storage reference names the hash of what it stands for; no payload does so by accident.
    IF NOT is_placeholder AND {leaves_reference} AND NEW.{hash} IS NOT NULL THEN
        is_placeholder := pg_catalog.strpos(NEW.{payload}::text, '"storage_ref"') > 0
            AND pg_catalog.strpos(NEW.{payload}::text, NEW.{hash}) > 0;
    END IF;

    IF TG_OP = 'UPDATE' THEN
        -- The release: the pointer stays as it was, the payload makes way for a placeholder.
        IF OLD.{status} = 'copied' AND NEW.{status} = 'in_storage' AND is_placeholder
            AND NEW.{object_key} = OLD.{object_key} AND NEW.{hash} = OLD.{hash} AND NEW.{size} = OLD.{size}
        THEN
            RETURN NEW;
        END IF;
        -- The restore: what is stored comes back, to the byte. The size that stays marks the hold: not moved again until
        -- it is written anew.
        IF OLD.{status} = 'in_storage' AND NEW.{status} = 'inline' AND NEW.{object_key} IS NULL
            AND pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(NEW.{payload}::text, 'UTF8')), 'hex') = OLD.{hash}
        THEN
            NEW.{hash} := NULL;
            NEW.{stored_at} := NULL;
            RETURN NEW;
        END IF;
        -- The expiry, and what is expired written again as it is.
        IF NEW.{object_key} IS NULL AND (
            OLD.{status} = 'in_storage' AND NEW.{status} = 'expired'
                AND (NEW.{payload} IS NULL OR pg_catalog.strpos(NEW.{payload}::text, '"deleted"') > 0)
            OR OLD.{status} = 'expired' AND NEW.{payload}::text IS NOT DISTINCT FROM OLD.{payload}::text
        ) THEN
            NEW.{status} := 'expired';
            NEW.{size} := NULL;
            NEW.{hash} := NULL;
            NEW.{stored_at} := NULL;
            RETURN NEW;
        END IF;
        IF NEW.{object_key} IS NOT DISTINCT FROM OLD.{object_key} THEN
            -- Written again with the same content, as an ORM does that saves whole rows. A copy that moves to another
            -- tenant or key is made again: the gate there may have passed its stored_at without ever seeing it.
            IF NEW.{payload}::text = OLD.{payload}::text AND NOT (OLD.{status} = 'copied' AND {is_moved}) THEN
                NEW.{status} := OLD.{status};
                NEW.{size} := OLD.{size};
                NEW.{hash} := OLD.{hash};
                NEW.{stored_at} := OLD.{stored_at};
                RETURN NEW;
            END IF;
            IF OLD.{status} = 'in_storage' AND (
                NEW.{payload} IS NULL OR pg_catalog.strpos(NEW.{payload}::text, OLD.{hash}) > 0
            ) THEN
                RAISE EXCEPTION 'the payload of this row of % is in object storage (%): editing it in place would lose it',
                    TG_TABLE_NAME, OLD.{object_key}
                    USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = {hint};
            END IF;
            is_complete := FALSE;
        ELSE
            is_new_pointer := NEW.{object_key} IS NOT NULL;
        END IF;
    END IF;

    -- Offloaded by the writer.
    IF is_placeholder AND is_complete THEN
        NEW.{status} := 'in_storage';
        NEW.{stored_at} := coalesce(NEW.{stored_at}, pg_catalog.clock_timestamp());
        RETURN NEW;
    END IF;
    IF is_new_pointer AND NEW.{payload} IS NULL AND (NEW.{object_key} IS NOT NULL OR NEW.{hash} IS NOT NULL) THEN
        RAISE EXCEPTION 'a row of % names an object without hash, key and size: it could never be verified', TG_TABLE_NAME
            USING ERRCODE = 'check_violation',
            HINT = 'Give all three pointer columns, or the payload itself.';
    END IF;

    NEW.{object_key} := NULL;
    NEW.{hash} := NULL;
    -- Told by the mark, the pointer's own trigger lets the payload be dropped together with its pointer.
    NEW.{stored_at} := CASE
        WHEN TG_OP = 'UPDATE' AND OLD.{status} = 'in_storage' AND NEW.{payload} IS NULL THEN '-infinity'::timestamptz
    END;
    NEW.{size} := pg_catalog.octet_length(NEW.{payload}::text);
    IF NEW.{size} > {threshold} OR ({threshold} = 0 AND NEW.{payload} IS NOT NULL) THEN
        NEW.{status} := 'pending_move';
    ELSE
        NEW.{status} := 'inline';
        NEW.{size} := NULL;
    END IF;
    RETURN NEW;
END
$offload$

-- name: pointer_function
-- The pointer columns written without the payload, as an ORM does that defers large columns and saves the rest stale.
CREATE OR REPLACE FUNCTION {pointer_function}() RETURNS trigger LANGUAGE plpgsql AS $offload$
BEGIN
    IF NEW.{stored_at} = '-infinity' THEN
        NEW.{stored_at} := NULL;
        RETURN NEW;
    END IF;
    -- Another payload: the payload's own trigger has judged it. The stored size tells most apart without printing them.
    IF pg_catalog.pg_column_size(NEW.{payload}) IS DISTINCT FROM pg_catalog.pg_column_size(OLD.{payload})
        OR NEW.{payload}::text IS DISTINCT FROM OLD.{payload}::text
    THEN
        RETURN NEW;
    END IF;
    -- A whole other pointer: the writer's exchange of one stored payload for another.
    IF OLD.{status} = 'in_storage' AND NEW.{status} = 'in_storage' AND NEW.{object_key} <> OLD.{object_key}
        AND NEW.{hash} IS NOT NULL AND NEW.{size} IS NOT NULL
    THEN
        RETURN NEW;
    END IF;
    NEW.{status} := OLD.{status};
    NEW.{size} := OLD.{size};
    NEW.{object_key} := OLD.{object_key};
    NEW.{hash} := OLD.{hash};
    NEW.{stored_at} := OLD.{stored_at};
    RETURN NEW;
END
$offload$

-- name: pointer_trigger
-- SHARE ROW EXCLUSIVE for an instant. Fires after the others, by its name.
CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE OF {status}, {size}, {object_key}, {hash}, {stored_at} ON {relation}
FOR EACH ROW
WHEN (
    (OLD.{status} = 'in_storage' AND NEW.{status} IS DISTINCT FROM 'expired'
        OR OLD.{status} IS DISTINCT FROM 'in_storage' AND NEW.{status} = 'in_storage')
    AND (NEW.{status}, NEW.{size}, NEW.{object_key}, NEW.{hash})
        IS DISTINCT FROM (OLD.{status}, OLD.{size}, OLD.{object_key}, OLD.{hash})
)
EXECUTE FUNCTION {pointer_function}()

-- name: insert_trigger
-- SHARE ROW EXCLUSIVE for an instant. WHEN rules ordinary small rows out before PL/pgSQL starts.
CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT ON {relation} FOR EACH ROW
WHEN (
    NOT ({is_small})
    OR NEW.{status} IS DISTINCT FROM 'inline'
    OR NEW.{object_key} IS NOT NULL
    OR NEW.{hash} IS NOT NULL
)
EXECUTE FUNCTION {function}()

-- name: update_trigger
-- SHARE ROW EXCLUSIVE for an instant. Fires only for statements that name the payload column.
CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE OF {payload} ON {relation} FOR EACH ROW
WHEN (
    NOT ({is_small})
    OR OLD.{status} IS DISTINCT FROM 'inline'
    OR NEW.{status} IS DISTINCT FROM 'inline'
    OR NEW.{object_key} IS NOT NULL
    OR NEW.{hash} IS NOT NULL
)
EXECUTE FUNCTION {function}()

-- name: move_trigger
-- SHARE ROW EXCLUSIVE for an instant. A copied row that changes tenant or key is copied and verified anew.
CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE ON {relation} FOR EACH ROW
WHEN (OLD.{status} = 'copied' AND {is_moved})
EXECUTE FUNCTION {function}()

-- name: comment_on_trigger
COMMENT ON TRIGGER {trigger} ON {relation} IS {fingerprint}

-- name: get_payload
-- The payload where the row still holds it, else the storage reference.
CREATE OR REPLACE FUNCTION {get_payload}({arguments}) RETURNS {payload_type} LANGUAGE sql STABLE AS $offload$
    SELECT CASE
        WHEN t.{payload} IS NULL AND t.{object_key} IS NOT NULL THEN ({reference})::text::{payload_type}
        ELSE t.{payload}
    END
    FROM {relation} AS t
    WHERE {argument_match}
$offload$

-- name: reference
-- What stands in the row for a payload in storage.
jsonb_build_object(
    'payload_type', 'storage_ref',
    'storage_path', t.{object_key},
    'size_bytes', t.{size},
    'sha256', t.{hash},
    'moved_at', t.{stored_at},
    'url', {store_url} || t.{object_key}
)

-- name: comment_on_function
COMMENT ON FUNCTION {get_payload} IS {fingerprint}

-- name: create_index
-- SHARE UPDATE EXCLUSIVE: reads and writes go on.
CREATE INDEX CONCURRENTLY {index} ON {relation} ({columns}) {include} WHERE {status} {has_status}

-- name: drop_invalid_index
-- What an interrupted CREATE INDEX CONCURRENTLY left behind.
DROP INDEX CONCURRENTLY {index}
