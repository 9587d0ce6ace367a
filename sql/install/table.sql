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
        -- Never seen, and moved, maybe to where a scan has been already: no other would come to it, so it is measured
        -- here. One without payload, or with a reference and its pointer, stays as it is. What cannot be printed can be
        -- moved all the same, and is queued: the copy records why it fails.
        IF OLD.{status} IS NULL AND TG_NAME = {move_trigger} THEN
            IF is_placeholder THEN
                RETURN NEW;
            END IF;
            NEW.{status} := 'inline';
            NEW.{size} := NULL;
            NEW.{object_key} := NULL;
            NEW.{hash} := NULL;
            NEW.{stored_at} := NULL;
            IF {is_large} THEN
                BEGIN
                    NEW.{size} := pg_catalog.octet_length(NEW.{payload}::text);
                    IF NEW.{size} > {threshold} OR {threshold} = 0 THEN
                        NEW.{status} := 'pending_move';
                    ELSE
                        NEW.{size} := NULL;
                    END IF;
                EXCEPTION WHEN program_limit_exceeded OR data_corrupted OR internal_error THEN
                    NEW.{status} := 'pending_move';
                    NEW.{size} := pg_catalog.pg_column_size(NEW.{payload});
                END;
            END IF;
            RETURN NEW;
        END IF;
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
            -- Told by the mark, the pointer's own trigger lets go of it.
            NEW.{stored_at} := CASE WHEN OLD.{status} = 'in_storage' THEN '-infinity'::timestamptz END;
            RETURN NEW;
        END IF;
        IF NEW.{object_key} IS NOT DISTINCT FROM OLD.{object_key} THEN
            -- Written again with the same content, as an ORM does that saves whole rows. A copy that moves to another
            -- tenant or key is made again: the gate there may have passed its stored_at without ever seeing it. A row
            -- never seen that moves has been measured by the move's own trigger.
            IF NEW.{payload}::text = OLD.{payload}::text
                AND NOT (OLD.{status} IS NOT DISTINCT FROM 'copied' AND {is_moved})
            THEN
                IF OLD.{status} IS NULL AND {is_moved} AND NOT is_placeholder THEN
                    RETURN NEW;
                END IF;
                NEW.{status} := OLD.{status};
                NEW.{size} := OLD.{size};
                NEW.{hash} := OLD.{hash};
                NEW.{stored_at} := OLD.{stored_at};
                RETURN NEW;
            END IF;
            -- The writer stored the same payload once more, and says so by a later moment.
            IF OLD.{status} = 'in_storage' AND is_placeholder AND NEW.{hash} = OLD.{hash} AND NEW.{size} = OLD.{size}
                AND NEW.{stored_at} > OLD.{stored_at}
            THEN
                NEW.{status} := 'in_storage';
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

    -- Offloaded by the writer. Told by the mark, the pointer's own trigger believes a pointer that comes with no change
    -- of the payload: the statement names the payload, and NULL stays NULL.
    IF is_placeholder AND is_complete THEN
        -- Of a row that was read long ago and is saved whole: its object may have been collected since. An hour is the
        -- least that garbage collection leaves an object.
        IF TG_OP = 'UPDATE' AND NEW.{stored_at} IS DISTINCT FROM OLD.{stored_at}
            AND NEW.{stored_at} < pg_catalog.clock_timestamp() - interval '1 hour'
        THEN
            RAISE EXCEPTION 'the pointer for this row of % was made at %, and its object may be gone by now',
                TG_TABLE_NAME, NEW.{stored_at}
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = {stale_hint};
        END IF;
        NEW.{status} := 'in_storage';
        NEW.{stored_at} := CASE
            WHEN TG_OP = 'UPDATE' AND NEW.{payload} IS NULL AND OLD.{payload} IS NULL THEN 'infinity'::timestamptz
            ELSE coalesce(NEW.{stored_at}, pg_catalog.clock_timestamp())
        END;
        RETURN NEW;
    END IF;
    IF {is_reference} THEN
        RAISE EXCEPTION 'what is written into this row of % is the reference to a payload in storage, without its pointer',
            TG_TABLE_NAME
            USING ERRCODE = 'check_violation',
            HINT = 'Write the payload that it stands for, or the pointer columns as well.';
    END IF;
    IF is_new_pointer AND NEW.{payload} IS NULL AND (NEW.{object_key} IS NOT NULL OR NEW.{hash} IS NOT NULL) THEN
        RAISE EXCEPTION 'a row of % names an object without hash, key and size: it could never be verified', TG_TABLE_NAME
            USING ERRCODE = 'check_violation',
            HINT = 'Give all three pointer columns, or the payload itself.';
    END IF;

    NEW.{object_key} := NULL;
    NEW.{hash} := NULL;
    -- Told by the mark, the pointer's own trigger lets go of it alone: what the row holds stays as it is, nothing as a rule,
    -- else what was written past the trigger.
    NEW.{stored_at} := CASE
        WHEN TG_OP = 'UPDATE' AND OLD.{status} = 'in_storage' AND NEW.{payload}::text IS NOT DISTINCT FROM OLD.{payload}::text
            THEN '-infinity'::timestamptz
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
    IF NEW.{stored_at} = 'infinity' THEN
        NEW.{stored_at} := pg_catalog.clock_timestamp();
        RETURN NEW;
    END IF;
    -- Another payload: the payload's own trigger has judged it. The stored size tells most apart without printing them.
    IF pg_catalog.pg_column_size(NEW.{payload}) IS DISTINCT FROM pg_catalog.pg_column_size(OLD.{payload})
        OR NEW.{payload}::text IS DISTINCT FROM OLD.{payload}::text
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
    (OLD.{status} = 'in_storage' OR NEW.{status} IN ('in_storage', 'expired'))
    AND (NEW.{status}, NEW.{size}, NEW.{object_key}, NEW.{hash})
        IS DISTINCT FROM (OLD.{status}, OLD.{size}, OLD.{object_key}, OLD.{hash})
)
EXECUTE FUNCTION {pointer_function}()

-- name: insert_trigger
-- SHARE ROW EXCLUSIVE for an instant. WHEN rules ordinary small rows out before PL/pgSQL starts. It is short because
-- PostgreSQL reads and compiles it anew for every statement, which of a single-row INSERT is a good part.
CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT ON {relation} FOR EACH ROW
WHEN (
    {is_large}
    OR NEW.{status} IS DISTINCT FROM 'inline'
    OR NEW.{object_key} IS NOT NULL
    OR NEW.{hash} IS NOT NULL
    {or_is_reference}
)
EXECUTE FUNCTION {function}()

-- name: update_trigger
-- SHARE ROW EXCLUSIVE for an instant. Fires only for statements that name the payload column.
CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE OF {payload} ON {relation} FOR EACH ROW
WHEN (
    {is_large}
    OR OLD.{status} IS DISTINCT FROM 'inline'
    OR NEW.{status} IS DISTINCT FROM 'inline'
    OR NEW.{object_key} IS NOT NULL
    OR NEW.{hash} IS NOT NULL
    {or_is_reference}
)
EXECUTE FUNCTION {function}()

-- name: move_trigger
-- SHARE ROW EXCLUSIVE for an instant. A copied row that changes tenant or key is copied and verified anew, one never seen
-- is measured. IS NOT FALSE lets NULL in, and names the column once: every UPDATE compiles it.
CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE ON {relation} FOR EACH ROW
WHEN ((OLD.{status} = 'copied') IS NOT FALSE AND {is_moved})
EXECUTE FUNCTION {function}()

-- name: comment_on_trigger
COMMENT ON TRIGGER {trigger} ON {relation} IS {fingerprint}

-- name: enable_trigger
-- SHARE ROW EXCLUSIVE for an instant. Only for one that is disabled, or fires on replicas alone.
ALTER TABLE {relation} ENABLE TRIGGER {trigger}

-- name: get_payload
-- The payload where the row still holds it, else the storage reference; of an expired one, that it is deleted.
CREATE OR REPLACE FUNCTION {called}({arguments}) RETURNS {payload_type} LANGUAGE sql STABLE AS $offload$
    SELECT CASE
        WHEN t.{payload} IS NULL AND t.{status} = 'expired' THEN '{{"deleted": true}}'::{payload_type}
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

-- name: move_to_storage
-- A move by hand: the row names the object that the caller uploads, and keeps its payload until verification has read
-- that object whole. Names and dates are printed as the pipeline prints them, whatever the session's settings.
-- Locks, in this order and until the caller's transaction ends: the row's claim, which copiers take as well; the row, NO
-- KEY UPDATE; the partition's state row. Verification sets its mark under that last one: so either it sees this row, or
-- the row's stored_at is above the mark, which can then never pass an object that nobody has looked at. Index: the
-- primary key.
CREATE OR REPLACE FUNCTION {called}({arguments}, text) RETURNS {payload_type} LANGUAGE plpgsql
SET TimeZone = 'UTC'
SET DateStyle = 'ISO, YMD'
SET IntervalStyle = 'postgres'
SET extra_float_digits = 1
SET bytea_output = 'hex'
AS $offload$
#variable_conflict use_column
<<by_hand>>
DECLARE
    given_path text := {path_argument};
    path_to_be text;
    stamp timestamptz;
    moved record;
    place record;
BEGIN
    SELECT {plain_key_text} AS key_text INTO moved FROM {relation} AS t WHERE {argument_match};
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended({lock_space} || moved.key_text, 0));
    SELECT
        {plain_key_text} AS key_text,
        {tenant_text} AS tenant,
        t.{status} AS status,
        t.{object_key} AS object_key,
        t.{payload} AS payload,
        pg_catalog.octet_length(t.{payload}::text)::bigint AS size,
        pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(t.{payload}::text, 'UTF8')), 'hex') AS hash
    INTO moved FROM {relation} AS t WHERE {argument_match} FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION '%: no row has this key', {table_name} USING ERRCODE = 'no_data_found';
    ELSIF moved.tenant IS NULL THEN
        RAISE EXCEPTION '% %: its tenant is NULL, so it belongs to no partition', {table_name}, moved.key_text
            USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF moved.status = 'expired' THEN
        RAISE EXCEPTION '% %: the payload is expired and was given up', {table_name}, moved.key_text
            USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF moved.status IN ('copied', 'in_storage') THEN
        RAISE EXCEPTION '% %: the payload is % already, as %', {table_name}, moved.key_text,
            CASE moved.status WHEN 'copied' THEN 'copied' ELSE 'in storage' END, moved.object_key
            USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF moved.payload IS NULL THEN
        RAISE EXCEPTION '% %: the row has no payload', {table_name}, moved.key_text
            USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF moved.size > {most_bytes} THEN
        RAISE EXCEPTION '% %: the payload is % bytes, max_object_bytes is %',
            {table_name}, moved.key_text, moved.size, {most_bytes} USING ERRCODE = 'program_limit_exceeded';
    END IF;

    -- Without the hash in its key, a later payload's object would take this one's place.
    path_to_be := pg_catalog.replace(given_path, '{{sha256}}', moved.hash);
    IF pg_catalog.strpos(path_to_be, moved.hash) = 0 THEN
        path_to_be := pg_catalog.rtrim(path_to_be, '/') || '/' || moved.hash || '.json.gz';
    END IF;
    -- What ends in .part could pass for what a killed put left behind.
    IF path_to_be IS NULL OR pg_catalog.length(path_to_be) > 1024 OR path_to_be ~ '(^|/)[.][.]?(/|$)|[.]part$'
        OR path_to_be !~ '^[A-Za-z0-9_.,=%~-]{{1,255}}(/[A-Za-z0-9_.,=%~-]{{1,255}})*$'
    THEN
        RAISE EXCEPTION 'the path % is no object key', coalesce(pg_catalog.quote_literal(given_path), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Write folder/{{sha256}}.json.gz, or folder: relative, of letters, digits and _ . , = % ~ - between slashes.';
    END IF;

    INSERT INTO {state} AS s (tenant_id, table_name, store_url)
    VALUES (moved.tenant, {table_name}, {configured_store})
    ON CONFLICT (tenant_id, table_name) DO UPDATE SET
        store_url = coalesce(s.store_url, excluded.store_url),
        updated_at = pg_catalog.clock_timestamp()
    RETURNING s.verification_mark AS mark, s.store_url AS store_url INTO place;
    IF place.store_url <> {configured_store} THEN
        RAISE EXCEPTION '%, tenant %: its objects are in %, and this was installed for %',
            {table_name}, moved.tenant, place.store_url, {configured_store}
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Run offload install with the store configured.';
    END IF;
    stamp := greatest(pg_catalog.clock_timestamp(), place.mark + interval '1 microsecond');

    UPDATE {relation} AS t
    SET
        {status} = 'copied',
        {size} = moved.size,
        {object_key} = by_hand.path_to_be,
        {hash} = moved.hash,
        {stored_at} = by_hand.stamp
    WHERE {argument_match};
    UPDATE {state}
    SET
        rows_copied = rows_copied + 1,
        payload_bytes_copied = payload_bytes_copied + moved.size,
        moved_by_hand_at = greatest(moved_by_hand_at, by_hand.stamp)
    WHERE tenant_id = moved.tenant
        AND table_name = {table_name};
    UPDATE {failures}
    SET resolved_at = pg_catalog.clock_timestamp()
    WHERE table_name = {table_name}
        AND tenant_id = moved.tenant
        AND primary_key = moved.key_text
        AND stage IN ('copy', 'write')
        AND resolved_at IS NULL;
    INSERT INTO {log} (run_id, table_name, tenant_id, action, rows, bytes)
    VALUES ('sql ' || session_user, {table_name}, moved.tenant, 'manual move', 1, moved.size);
    RETURN moved.payload;
END
$offload$

-- name: comment_on_function
COMMENT ON FUNCTION {called} IS {fingerprint}

-- name: create_index
-- SHARE UPDATE EXCLUSIVE: reads and writes go on.
CREATE INDEX CONCURRENTLY {index} ON {relation} ({columns}) {include} WHERE {status} {has_status}

-- name: drop_invalid_index
-- What an interrupted CREATE INDEX CONCURRENTLY left behind.
DROP INDEX CONCURRENTLY {index}
