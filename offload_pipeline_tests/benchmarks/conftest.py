"""The session's servers, as the benchmarks know them."""

from pathlib import Path

import pytest

from benchmarks.servers import Servers
from offload_pipeline.storage.seaweedfs import SeaweedFS


@pytest.fixture
def servers(database_url: str, s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path) -> Servers:
    """With a database of the test's own, and the bucket of the session."""
    return Servers(database_url, seaweedfs, tmp_path)
