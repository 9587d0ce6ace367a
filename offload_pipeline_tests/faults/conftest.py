"""The table and the proxy in front of its store, as the tests of copying have them."""

from offload_pipeline_tests.offload.conftest import behind_proxy, notices, proxy, real_store

__all__ = ["behind_proxy", "notices", "proxy", "real_store"]
