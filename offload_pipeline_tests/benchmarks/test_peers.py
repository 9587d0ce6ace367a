"""Whatever a peer is compared for, it does: every row is moved, or the run counts for nothing."""

import gzip
import json
from collections.abc import Callable
from itertools import islice

import pytest
from psycopg import Connection

from benchmarks import peers
from benchmarks.moving import Peer, move_by_peer, source
from benchmarks.payloads import payloads
from benchmarks.servers import Servers
from offload_pipeline.storage.seaweedfs import SeaweedFS

ROWS = 40
PAYLOAD_BYTES = 8_000
ROWS_LEFT = f"SELECT id, payload, object_key, done FROM {peers.TABLE} ORDER BY id"  # noqa: S608 - our own names
DONE = f"UPDATE {peers.TABLE} SET done = TRUE, payload = NULL"  # noqa: S608
NEEDS_PROGRAMS = pytest.mark.skipif(bool(missing := peers.missing_programs()), reason=f"no {', '.join(missing)}")
PEERS = [peers.simple_loop, peers.threaded_loop, pytest.param(peers.shell_script, marks=NEEDS_PROGRAMS)]


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_moves_every_row(servers: Servers, s3_prefix: str, peer: Peer) -> None:
    texts = dict(enumerate(islice(payloads(PAYLOAD_BYTES), ROWS), 1))
    with servers.connect() as connection:
        _fill(connection, texts)
        move = peer(servers.database_url, servers.s3, s3_prefix)
        assert not list(servers.store().list(s3_prefix)), "making ready is not yet moving"
        move()
        rows = connection.execute(ROWS_LEFT).fetchall()
    keys = {row_id: f"{s3_prefix}/{row_id}.json.gz" for row_id in texts}
    assert rows == [(row_id, None, key, True) for row_id, key in keys.items()]
    stored = {row_id: gzip.decompress(servers.store().get(key)) for row_id, key in keys.items()}
    assert {row_id: json.loads(data) for row_id, data in stored.items()} == {
        row_id: json.loads(text) for row_id, text in texts.items()
    }


@pytest.mark.parametrize("peer", PEERS)
def test_a_run_of_a_peer_is_timed(servers: Servers, peer: Peer) -> None:
    with servers.connect() as connection, source(connection, PAYLOAD_BYTES, ROWS):
        run = move_by_peer(servers, connection, peer, ROWS)
    assert run.milliseconds_per_row == pytest.approx(run.seconds / ROWS * 1e3)
    assert set(run.cpu_milliseconds_per_row) == {"us", "postgres", "store"}


def test_a_peer_that_leaves_rows_is_no_comparison(servers: Servers) -> None:
    def lazy(_database_url: str, _store: SeaweedFS, _prefix: str) -> Callable[[], None]:
        return lambda: None

    with servers.connect() as connection, source(connection, PAYLOAD_BYTES, 2):
        with pytest.raises(RuntimeError, match=r"^2 of 2 rows were not moved$"):
            move_by_peer(servers, connection, lazy, 2)
        assert connection.execute("SELECT to_regclass(%s)", [peers.TABLE]).fetchone() == (None,)


def test_a_peer_that_stores_nothing_is_no_comparison(servers: Servers) -> None:
    def careless(_database_url: str, _store: SeaweedFS, _prefix: str) -> Callable[[], None]:
        def move() -> None:
            connection.execute(DONE)

        return move

    with (
        servers.connect() as connection,
        source(connection, PAYLOAD_BYTES, 2),
        pytest.raises(RuntimeError, match=r"^the store has 0 objects of 2 rows under "),
    ):
        move_by_peer(servers, connection, careless, 2)


def _fill(connection: Connection, texts: dict[int, str]) -> None:
    connection.execute(peers.CREATE)
    with connection.cursor() as cursor, cursor.copy(f"COPY {peers.TABLE} (id, payload) FROM STDIN") as copy:
        for row in texts.items():
            copy.write_row(row)
