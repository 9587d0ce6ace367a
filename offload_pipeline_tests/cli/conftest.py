"""A database, a store and a configuration for each test of the command line."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import make_table


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """What the application would use."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def offload(
    tmp_path: Path,
    database_url: str,
    local_store_url: str,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """The command line, on the test's database and a local store; `configure` it first."""
    return Command(tmp_path, (database_url, local_store_url), capsysbinary, monkeypatch)


@pytest.fixture
def notices(offload: Command, connection: psycopg.Connection) -> TableConfig:
    """An installed table that offloads every payload of more than 100 bytes."""
    table = make_table(connection, threshold_bytes=100)
    offload.configure(table)
    assert offload("install").code == 0
    return table


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    """Where `local_store_url` keeps its objects."""
    return tmp_path / "objects"
