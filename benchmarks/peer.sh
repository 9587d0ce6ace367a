#!/usr/bin/env bash
# Moves payloads to S3 with what every machine has; nothing is verified.
set -euo pipefail
file=$(mktemp)
trap 'rm -f "$file"' EXIT
psql -XqAtc "SELECT id FROM $TABLE WHERE NOT done ORDER BY id" "$DATABASE_URL" | while read -r id; do
    key="$PREFIX/$id.json.gz"
    psql -XqAtc "SELECT payload FROM $TABLE WHERE id = $id" "$DATABASE_URL" | gzip >"$file"
    curl -sSf --aws-sigv4 "aws:amz:$REGION:s3" --user "$KEYS" -T "$file" -o /dev/null "$BUCKET_URL/$key"
    psql -Xqc "UPDATE $TABLE SET payload = NULL, object_key = '$key', done = TRUE WHERE id = $id" "$DATABASE_URL"
done
