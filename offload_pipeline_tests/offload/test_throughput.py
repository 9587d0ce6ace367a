"""Throughput is guarded against halving, by a plain loop that runs in the same minute on the same servers and payloads.

The loop is the one of `make bench` in sixteen threads: as parallel as ours. What other work takes of the cores is left
out of both times, since eight busy processes halved the ratio by themselves.
"""

from functools import partial
from pathlib import Path

from benchmarks.moving import move_by_peer, move_by_us, source
from benchmarks.peers import threaded_loop
from benchmarks.results import alternating, median, ratios
from benchmarks.servers import Servers
from offload_pipeline.storage.seaweedfs import SeaweedFS

PAYLOAD_BYTES = 8_000
OUR_ROWS, THEIR_ROWS = 1200, 500
ROUNDS = 7
# How many times as fast as the loop we were on two cores: 1.8 to 2.2 in eight measurements, 22 November 2026.
TIMES = 2.1


def test_a_backfill_has_not_become_half_as_fast(
    database_url: str, s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    """A full backfill of rows older than the trigger, everything verified, against a loop that verifies nothing.

    Seen when it was tried, as median of the rounds: with one store thread 0.83, with one batch in flight as well 0.79,
    with 20 ms of sleep before every read-back 0.86, all red; with every object read back twice 1.84, three times 1.48,
    which is not yet half. With eight busy processes beside it 1.39 to 1.48. What does not pass at first is measured
    once more, and then all rounds count.
    """
    servers = Servers(database_url, seaweedfs, tmp_path)
    times: list[float] = []
    with servers.connect() as connection, source(connection, PAYLOAD_BYTES, OUR_ROWS):
        while len(times) < 2 * ROUNDS and not (times and median(times) > TIMES / 2):
            ours = partial(move_by_us, servers, connection, OUR_ROWS, threshold_bytes=0)
            theirs = partial(move_by_peer, servers, connection, threaded_loop, THEIR_ROWS)
            found = alternating({"ours": ours, "theirs": theirs}, ROUNDS)
            per_row = {name: [run.undisturbed_milliseconds_per_row for run in runs] for name, runs in found.items()}
            times += ratios(per_row["theirs"], per_row["ours"])
    figures = f"{median(times):.2f} times as fast as the loop; rounds: {', '.join(f'{one:.2f}' for one in times)}"
    print(f"\n{figures}")  # noqa: T201 - shown by `pytest -s`
    assert median(times) > TIMES / 2, figures
