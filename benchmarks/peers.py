"""What people use today: the straightforward loop, the same with threads, a shell script. None verifies anything.

Each moves every row of `TABLE` to S3, under `prefix`, and clears the payload. What it needs is made ready, up to its
client of the store, before it gives the function that does so; connections are opened by that, as they are by ours.
"""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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


def simple_loop(database_url: str, store: SeaweedFS, prefix: str) -> Callable[[], None]:
    """psycopg, json, gzip and boto3: twenty rows a query, a commit a row."""
    first, last = _ids(database_url)
    return partial(_move, database_url, _client(store), store.bucket, prefix, first - 1, last)


def threaded_loop(database_url: str, store: SeaweedFS, prefix: str) -> Callable[[], None]:
    """The same in sixteen threads, each with a connection and a sixteenth of the ids; they share the client."""
    first, last = _ids(database_url)
    bounds = [first - 1 + (last - first + 1) * number // THREADS for number in range(THREADS + 1)]
    share = partial(_move, database_url, _client(store), store.bucket, prefix)

    def move() -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(share, bounds[:-1], bounds[1:]))

    return move


def shell_script(database_url: str, store: SeaweedFS, prefix: str) -> Callable[[], None]:
    """psql, gzip and curl, each started anew for each row."""
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "TABLE": TABLE,
        "BUCKET_URL": f"{store.endpoint}/{store.bucket}",
        "PREFIX": prefix,
        "REGION": REGION,
        "KEYS": f"{store.access_key}:{store.secret_key}",
    }

    def move() -> None:
        subprocess.run(["bash", str(SCRIPT)], env=environment, check=True)  # noqa: S603, S607 - the script beside this

    return move


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


def _ids(database_url: str) -> tuple[int, int]:
    """The first and the last."""
    with psycopg.connect(database_url) as connection:
        [(first, last)] = connection.execute(f"SELECT min(id), max(id) FROM {TABLE}")  # noqa: S608 - as above
    return first, last


def _move(database_url: str, client: Any, bucket: str, prefix: str, after: int, last: int) -> None:
    """The rows whose ids are above `after`, up to `last`."""
    with psycopg.connect(database_url) as connection:
        while rows := connection.execute(_SELECT, (after, last)).fetchall():
            for row_id, payload in rows:
                key = f"{prefix}/{row_id}.json.gz"
                data = gzip.compress(json.dumps(payload, sort_keys=True).encode())
                client.put_object(Bucket=bucket, Key=key, Body=data)
                connection.execute(_UPDATE, (key, row_id))
                connection.commit()
            after = rows[-1][0]
