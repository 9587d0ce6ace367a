"""A table ready to be offloaded and verified."""

from collections.abc import Iterator

import pytest

from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed


@pytest.fixture
def notices(database_url: str, local_store_url: str) -> Iterator[Installation]:
    """jsonb payloads of every size, cleared after the copy, on a local store."""
    with installed(database_url, local_store_url) as installation:
        yield installation


@pytest.fixture(params=["local", "s3"])
def notices_anywhere(request: pytest.FixtureRequest, database_url: str) -> Iterator[Installation]:
    """The same on both kinds of store; the S3 server starts only where it is asked for."""
    address = StoreAddress(request.getfixturevalue("local_store_url"))
    if request.param == "s3":
        server: SeaweedFS = request.getfixturevalue("seaweedfs")
        address = StoreAddress(request.getfixturevalue("s3_url"), {"endpoint": server.endpoint})
    with installed(database_url, address) as installation:
        yield installation
