"""How fast a backfill moves payloads to S3, with everything verified, against what people use today.

Ours is the whole of it: copy with read-back of every object, verification, and release with PostgreSQL's own hash, of
rows that are older than the trigger. The peers verify nothing. All move the same payloads from fresh tables, vacuumed
and behind a checkpoint, to the same store; each as many rows as take it some seconds, so that what is compared is the
time per row. After each run every row has to be done and every object has to be there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from psycopg import Connection

from benchmarks import peers
from benchmarks.moving import Peer, Run, median_cpu, move_by_peer, move_by_us, said_cpu, source
from benchmarks.results import Measured, alternating, median, ratios
from benchmarks.servers import Servers

OURS, LOOP, THREADS, SCRIPT = "offload_pipeline", "the loop", "the loop in 16 threads", "psql, gzip, curl"
_PEERS = {LOOP: peers.simple_loop, THREADS: peers.threaded_loop, SCRIPT: peers.shell_script}
# Against the loop the bar is that of the size.
_BARS = {THREADS: 1.5, SCRIPT: 30.0}


@dataclass(frozen=True)
class Size:
    """Payloads of about `payload_bytes`, how many rows each subject moves in a run, and the bar against the loop."""

    payload_bytes: int
    threshold_bytes: int
    rows: Mapping[str, int]
    bar: float

    def __str__(self) -> str:
        return f"{self.payload_bytes // 1000} kB payloads"


SIZES = (
    Size(150_000, 102_400, {OURS: 2500, LOOP: 300, THREADS: 500, SCRIPT: 30}, bar=4.0),
    Size(8_000, 0, {OURS: 8000, LOOP: 1000, THREADS: 1500, SCRIPT: 40}, bar=6.0),
)


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """Seconds per row of each peer over ours, for large payloads and for small ones."""
    missing = peers.missing_programs()
    if missing:
        say(f"no comparison with the shell script: this machine has no {', '.join(missing)}")
    against = {name: peer for name, peer in _PEERS.items() if not (missing and name == SCRIPT)}
    with servers.connect() as connection:
        return [found for size in SIZES for found in _at(servers, connection, say, size, against)]


def _at(
    servers: Servers, connection: Connection, say: Callable[[str], None], size: Size, against: Mapping[str, Peer]
) -> list[Measured]:
    say(f"{size} to S3, by us and by the peers")
    subjects: dict[str, Callable[[], Run]] = {
        OURS: partial(move_by_us, servers, connection, size.rows[OURS], size.threshold_bytes)
    }
    for name, peer in against.items():
        subjects[name] = partial(move_by_peer, servers, connection, peer, size.rows[name])
    with source(connection, size.payload_bytes, max(size.rows.values())):
        found = alternating(subjects)
    parts = {name: median([run.milliseconds_per_row for run in runs]) for name, runs in found.items()}
    return [_measured(size, name, found, parts) for name in against]


def _measured(size: Size, peer: str, found: Mapping[str, list[Run]], parts: Mapping[str, float]) -> Measured:
    per_row = {name: [run.milliseconds_per_row for run in found[name]] for name in (OURS, peer)}
    runs = ratios(per_row[peer], per_row[OURS])
    return Measured(
        measure=f"{size}, S3: against {peer}",
        value=median(runs), unit="times", bar=_BARS.get(peer, size.bar), is_at_most=False, runs=tuple(runs),
        detail=f"{parts[OURS]:.2f} ms a row against {parts[peer]:.2f}" + (_cpu(found) if peer == LOOP else ""),
        parts={OURS: parts[OURS], peer: parts[peer]},
    )  # fmt: skip


def _cpu(found: Mapping[str, list[Run]]) -> str:
    ours, loop = median_cpu(found[OURS]), median_cpu(found[LOOP])
    sums = f"{sum(ours.values()):.2f} against {sum(loop.values()):.2f}"
    return f"; CPU a row in ms: {sums}, ours {said_cpu(ours)}, the loop's {said_cpu(loop)}"
