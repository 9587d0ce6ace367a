"""A table ready to be offloaded and verified."""

from collections.abc import Iterator

import pytest

from offload_pipeline_tests.offload.installation import Installation, installed


@pytest.fixture
def notices(database_url: str, local_store_url: str) -> Iterator[Installation]:
    """jsonb payloads of every size, cleared after the copy, on a local store."""
    with installed(database_url, local_store_url) as installation:
        yield installation
