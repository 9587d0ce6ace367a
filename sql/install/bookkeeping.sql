-- name: tables
-- Locks: none that the application can see; these tables are ours. Idempotent.
CREATE TABLE IF NOT EXISTS {state} (
    tenant_id text NOT NULL,
    table_name text NOT NULL,
    checkpoint text[],
    backfilled_at timestamptz,
    rows_copied bigint NOT NULL DEFAULT 0,
    payload_bytes_copied bigint NOT NULL DEFAULT 0,
    object_bytes_copied bigint NOT NULL DEFAULT 0,
    rows_verified bigint NOT NULL DEFAULT 0,
    rows_released bigint NOT NULL DEFAULT 0,
    payload_bytes_released bigint NOT NULL DEFAULT 0,
    verification_mark timestamptz,
    verified_through timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, table_name)
);
ALTER TABLE {state}
    ADD COLUMN IF NOT EXISTS store_url text,
    ADD COLUMN IF NOT EXISTS moved_by_hand_at timestamptz,
    ADD COLUMN IF NOT EXISTS full_checkpoint text[],
    ADD COLUMN IF NOT EXISTS fully_verified_at timestamptz;
CREATE TABLE IF NOT EXISTS {failures} (
    table_name text NOT NULL,
    tenant_id text NOT NULL,
    primary_key text NOT NULL,
    stage text NOT NULL,
    error_class text NOT NULL,
    message text NOT NULL,
    permanent boolean NOT NULL DEFAULT FALSE,
    row_version text,
    attempts integer NOT NULL DEFAULT 1,
    first_failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at timestamptz,
    PRIMARY KEY (table_name, tenant_id, primary_key, stage)
);
CREATE INDEX IF NOT EXISTS payload_offload_failures_open ON {failures} (last_failed_at) WHERE resolved_at IS NULL;
CREATE TABLE IF NOT EXISTS {log} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    logged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id text NOT NULL,
    table_name text NOT NULL,
    tenant_id text,
    action text NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS {expired} (
    object_key text NOT NULL PRIMARY KEY,
    table_name text NOT NULL,
    tenant_id text NOT NULL,
    bytes bigint NOT NULL,
    expired_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS {deleted} (
    object_key text NOT NULL PRIMARY KEY,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS {archival_log} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    logged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id text NOT NULL,
    table_name text NOT NULL,
    tenant_id text,
    action text NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    location text
);
CREATE OR REPLACE FUNCTION {refuse_change}() RETURNS trigger LANGUAGE plpgsql AS $offload$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'object_not_in_prerequisite_state';
END
$offload$;
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {log}
    FOR EACH STATEMENT EXECUTE FUNCTION {refuse_change}();
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {archival_log}
    FOR EACH STATEMENT EXECUTE FUNCTION {refuse_change}();
CREATE OR REPLACE FUNCTION {calculate_payload_size}(payload jsonb) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN pg_catalog.octet_length(payload::text);
COMMENT ON TABLE {state} IS {fingerprint}

-- name: fingerprint
-- What the comment on the state table says was installed; NULL before the first install.
SELECT pg_catalog.obj_description(pg_catalog.to_regclass(%(state)s), 'pg_class')
