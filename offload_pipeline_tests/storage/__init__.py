"""Tests of `offload_pipeline.storage`."""
