"""How much memory a worker takes at most, with payloads of 10 MB in the table.

A process of its own drains a table of 8 kB payloads with some of 10 MB among them, and one of 10 MB payloads alone;
once as a queue, and once as rows that are older than the trigger. Configured as by default. The large payloads are
noise in base64, so that their objects are nearly as large as they are.
"""

import base64
import json
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

from psycopg import Connection

from benchmarks.payloads import payloads
from benchmarks.results import Measured
from benchmarks.servers import Servers
from benchmarks.worker import drain_in_a_process

MOST_MEGABYTES = 400
LARGE_BYTES, SMALL_BYTES = 10_000_000, 8_000
LARGE_ROWS = 30
SMALL_ROWS_FOR_EACH_LARGE = 150
_CREATE = "CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant_id text NOT NULL, payload jsonb)"


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """The most megabytes (10**6) that any of the workers held."""
    peaks: dict[str, float] = {}
    for content, made in {"10 MB among 8 kB": _mixed, "10 MB alone": _large}.items():
        for state, is_old in {"queue": False, "older than the trigger": True}.items():
            say(f"draining payloads of {content}, {state}, and watching the memory")
            peaks[f"{content}, {state}"] = _peak(servers, f"memory_rows_{len(peaks)}", made(), is_old=is_old)
    return [
        Measured(
            measure="peak memory of a worker, 10 MB payloads among them",
            value=max(peaks.values()), unit="MB", bar=MOST_MEGABYTES, is_at_most=True, runs=tuple(peaks.values()),
            detail="the most of one run each: " + "; ".join(f"{name}: {peak:.0f} MB" for name, peak in peaks.items()),
        )
    ]  # fmt: skip


def _peak(servers: Servers, name: str, texts: Iterator[str], *, is_old: bool) -> float:
    config = {"name": name, "relation": f"public.{name}", "primary_key": ["id"], "payload": "payload",
              "tenant": {"column": "tenant_id"}, "threshold_bytes": 1_000}  # fmt: skip
    with servers.connect() as connection:
        connection.execute(_CREATE.format(name))
        try:
            rows = _fill(connection, name, texts) if is_old else 0
            pipeline = servers.pipeline(config)
            rows = rows or _fill(connection, name, texts)
            drained = drain_in_a_process(pipeline, servers.home, "acme")
        finally:
            connection.execute(f"DROP TABLE {name}")
    if drained.rows_released != rows:
        raise RuntimeError(f"{drained.rows_released} of {rows} rows were drained")
    return drained.peak_megabytes


def _fill(connection: Connection, name: str, texts: Iterator[str]) -> int:
    with connection.cursor() as cursor:
        with cursor.copy(f"COPY {name} (tenant_id, payload) FROM STDIN") as copy:
            for text in texts:
                copy.write_row(("acme", text))
        return cursor.rowcount


def _large() -> Iterator[str]:
    chance = Random(1)  # noqa: S311 - noise, not a secret
    for number in range(LARGE_ROWS):
        noise = base64.b64encode(chance.randbytes(LARGE_BYTES * 3 // 4)).decode()
        yield json.dumps({"delivery": number, "noise": noise})


def _mixed() -> Iterator[str]:
    small = payloads(SMALL_BYTES)
    for large in _large():
        yield from islice(small, SMALL_ROWS_FOR_EACH_LARGE)
        yield large
