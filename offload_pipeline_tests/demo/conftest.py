"""One embedded PostgreSQL for all tests of the demo; each rebuilds the demo's tables."""

from collections.abc import Iterator, Mapping

import pytest

from offload_pipeline.config import DATABASE_VARIABLES
from offload_pipeline.database.embedded import stop_embedded
from offload_pipeline.demo.environment import demo_environment
from offload_pipeline.demo.tables import rebuild
from offload_pipeline.pipeline import Pipeline, open_pipeline
from offload_pipeline_tests.servers import track


@pytest.fixture(scope="session")
def demo_variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The demo's environment, in a folder of the session's; its PostgreSQL runs until the end."""
    home = tmp_path_factory.mktemp("demo")
    variables = demo_environment(home, None)
    track(int((home / "postgres" / "pgdata" / "postmaster.pid").read_text().split()[0]), "the demo's PostgreSQL")
    yield variables
    stop_embedded(home / "postgres")


@pytest.fixture
def demo(demo_variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The demo's pipeline as in its own process, its tables new and empty."""
    for name in DATABASE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in demo_variables.items():
        monkeypatch.setenv(name, value)
    pipeline = open_pipeline()
    rebuild(pipeline)
    return pipeline
