"""The servers and stores that tests ask for by name; each is started when the first test needs it."""

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from offload_pipeline.database import embedded
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.servers import (
    DEBIAN_BIN_DIR,
    PostgresServer,
    find_system_bin_dir,
    survivors,
    template_preparations,
    track,
)

EMBEDDED = "embedded-18"
SYSTEM = "system-15"
# What OFFLOAD_TEST_POSTGRES may say, and the servers that tests then run on.
CHOICES = {"18": [EMBEDDED], "15": [SYSTEM], "both": [EMBEDDED, SYSTEM]}
TEMPLATE = "test_template"
# A developer's own would be sent along with the test server's keys, or lead elsewhere.
OTHER_AWS_VARIABLES = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def pytest_configure() -> None:
    """Jobs that a shell starts in the background ignore SIGINT, and so would what the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that needs PostgreSQL names its server: one by default, both for `both_servers`."""
    if "postgres_server" not in metafunc.fixturenames:
        return
    default = "both" if metafunc.definition.get_closest_marker("both_servers") else "18"
    choice = os.environ.get("OFFLOAD_TEST_POSTGRES") or default
    if choice not in CHOICES:
        raise pytest.UsageError(f"OFFLOAD_TEST_POSTGRES={choice}: give one of {', '.join(CHOICES)}")
    metafunc.parametrize("postgres_server", CHOICES[choice], indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def no_server_survives() -> Iterator[None]:
    """Set up before all other fixtures of the session, so taken down after them."""
    yield
    assert not survivors(), "started by this session, and still running"


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server that lives as long as tests need it; whoever breaks it restarts it."""
    bin_dir = embedded.BIN_DIR
    if request.param == SYSTEM:
        found = find_system_bin_dir()
        if found is None:
            pytest.skip(f"no PostgreSQL 15 in {DEBIAN_BIN_DIR} or where pg_config points")
        bin_dir = found
    server = PostgresServer(bin_dir)
    yield server
    server.close()


@pytest.fixture(scope="session")
def template_database(postgres_server: PostgresServer) -> str:
    """What every test's database is a copy of: empty, but for what `template_preparations` put in."""
    postgres_server.create_database(TEMPLATE)
    for prepare in template_preparations:
        prepare(postgres_server.url(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_url(postgres_server: PostgresServer, template_database: str) -> Iterator[str]:
    """A database of the test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres_server.create_database(name, template_database)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def embedded_dir() -> Iterator[Path]:
    """Instead of `tmp_path`, which pytest closes to other accounts, and so to the PostgreSQL that root starts."""
    with tempfile.TemporaryDirectory(prefix="embedded-") as directory:
        yield Path(directory)
        for lock in Path(directory).rglob("users.lock"):
            embedded.stop_embedded(lock.parent)


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """A real S3 server, with one bucket for the session."""
    with tempfile.TemporaryDirectory(prefix="s3-") as directory, SeaweedFS(Path(directory)) as server:
        track(server.pid, "SeaweedFS")
        yield server


@pytest.fixture
def s3_prefix() -> str:
    """Tests share the bucket, and keep apart by prefix."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def s3_url(seaweedfs: SeaweedFS, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/prefix`, with the keys in the environment; the endpoint is `seaweedfs.endpoint`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    for name in OTHER_AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return f"s3://{seaweedfs.bucket}/{s3_prefix}"


@pytest.fixture
def local_store_url(tmp_path: Path) -> str:
    """`file://` and a directory of the test's own."""
    store = tmp_path / "objects"
    store.mkdir()
    return store.as_uri()
