"""A table ready to be offloaded, on each kind of store."""

from collections.abc import Iterator

import pytest

from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed


@pytest.fixture
def s3_store(s3_url: str, seaweedfs: SeaweedFS) -> StoreAddress:
    """A prefix of the test's own on the S3 server."""
    return StoreAddress(s3_url, {"endpoint": seaweedfs.endpoint})


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest) -> StoreAddress:
    """Both kinds of store; the S3 server starts only where it is asked for."""
    if request.param == "s3":
        address: StoreAddress = request.getfixturevalue("s3_store")
        return address
    return StoreAddress(request.getfixturevalue("local_store_url"))


@pytest.fixture
def notices(database_url: str, local_store_url: str) -> Iterator[Installation]:
    """jsonb payloads of every size, cleared after the copy, on a local store."""
    with installed(database_url, local_store_url) as installation:
        yield installation
