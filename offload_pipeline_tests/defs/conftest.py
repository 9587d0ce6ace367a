"""A project with one table, on a local store."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from offload_pipeline_tests.defs.project import Project, opened_project
from offload_pipeline_tests.factories import make_table

MakeProject = Callable[..., Project]


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """The application's own, in autocommit."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def make_project(
    connection: psycopg.Connection,
    database_url: str,
    local_store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MakeProject]:
    """Opens a project; without `tables` on notices, all payloads of which move. Keywords: sections of offload.yaml."""
    with ExitStack() as stack:

        def make(tables: Any = None, object_store: Any = None, **sections: Any) -> Project:
            chosen = tables or [make_table(connection, threshold_bytes=0)]
            store = object_store or {"url": local_store_url}
            project = opened_project(connection, tmp_path, monkeypatch, database_url, store, chosen, **sections)
            return stack.enter_context(project)

        yield make


@pytest.fixture
def project(make_project: MakeProject) -> Project:
    """One table with default settings."""
    return make_project()
