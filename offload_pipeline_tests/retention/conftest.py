"""The tables and stores that the tests of copying have."""

from offload_pipeline_tests.offload.conftest import any_store, behind_proxy, notices, proxy, real_store, s3_store

__all__ = ["any_store", "behind_proxy", "notices", "proxy", "real_store", "s3_store"]
