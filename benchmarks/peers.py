"""What people use today: the straightforward loop, the same with threads, a shell script. None verifies anything.

Each moves every row of `TABLE` to S3, under `prefix`, and clears the payload.
"""

import gzip
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # boto's packages carry no type information
import psycopg
from botocore.config import Config  # type: ignore[import-untyped]

from offload_pipeline.storage.seaweedfs import REGION, SeaweedFS

TABLE = "peer_rows"
# The index serves both the queue and its order.
CREATE = f"""
    CREATE TABLE {TABLE} (
        id bigint PRIMARY KEY,
        payload jsonb,
        object_key text,
        done boolean NOT NULL DEFAULT FALSE
    );
    CREATE INDEX {TABLE}_waiting ON {TABLE} (id) WHERE NOT done
"""
ROWS_PER_QUERY = 20
THREADS = 16
SCRIPT = Path(__file__).parent / "peer.sh"
PROGRAMS = ("bash", "psql", "gzip", "curl")

_SELECT = f"""
    SELECT id, payload FROM {TABLE}
    WHERE NOT done AND id > %s AND id <= %s
    ORDER BY id LIMIT {ROWS_PER_QUERY}
"""  # noqa: S608 - constants of this module
_UPDATE = f"UPDATE {TABLE} SET payload = NULL, object_key = %s, done = TRUE WHERE id = %s"  # noqa: S608 - as above


def simple_loop(database_url: str, store: SeaweedFS, prefix: str) -> None:
    """psycopg, json, gzip and boto3: twenty rows a query, a commit a row."""
    with psycopg.connect(database_url) as connection:
        first, last = _ids(connection)
        _move_all(connection, _client(store), store.bucket, prefix, first - 1, last)


def threaded_loop(database_url: str, store: SeaweedFS, prefix: str) -> None:
    """The same in sixteen threads, each with a connection and a sixteenth of the ids; they share the client."""
    client = _client(store)
    with psycopg.connect(database_url) as connection:
        first, last = _ids(connection)
    bounds = [first - 1 + (last - first + 1) * number // THREADS for number in range(THREADS + 1)]

    def share(number: int) -> None:
        with psycopg.connect(database_url) as connection:
            _move_all(connection, client, store.bucket, prefix, bounds[number], bounds[number + 1])

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(share, range(THREADS)))


def shell_script(database_url: str, store: SeaweedFS, prefix: str) -> None:
    """psql, gzip and curl, each started anew for each row."""
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "TABLE": TABLE,
        "BUCKET_URL": f"{store.endpoint}/{store.bucket}",
        "PREFIX": prefix,
        "REGION": REGION,
        "KEYS": f"{store.access_key}:{store.secret_key}",
    }
    subprocess.run(["bash", str(SCRIPT)], env=environment, check=True)  # noqa: S603, S607 - the script beside this


def missing_programs() -> list[str]:
    """What the shell script needs and this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def _client(store: SeaweedFS) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name=REGION,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=THREADS),
    )


def _ids(connection: psycopg.Connection) -> tuple[int, int]:
    found = connection.execute(f"SELECT min(id), max(id) FROM {TABLE}").fetchone()  # noqa: S608 - as above
    assert found is not None
    return found[0], found[1]


def _move_all(connection: psycopg.Connection, client: Any, bucket: str, prefix: str, after: int, last: int) -> None:
    while rows := connection.execute(_SELECT, (after, last)).fetchall():
        for row_id, payload in rows:
            key = f"{prefix}/{row_id}.json.gz"
            data = gzip.compress(json.dumps(payload, sort_keys=True).encode())
            client.put_object(Bucket=bucket, Key=key, Body=data)
            connection.execute(_UPDATE, (key, row_id))
            connection.commit()
        after = rows[-1][0]
