"""The table and the proxy in front of its store, as the tests of copying have them."""

import pytest

from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.offload.conftest import behind_proxy, notices, proxy, real_store
from offload_pipeline_tests.offload.installation import Installation

__all__ = ["behind_proxy", "notices", "proxy", "real_store"]


@pytest.fixture
def past_proxy(behind_proxy: Installation, real_store: ObjectStore) -> Installation:
    """The same table and objects for steps that are to succeed, whose time-outs are not those of a test."""
    return behind_proxy.with_store(real_store)
