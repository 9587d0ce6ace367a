"""Tests of `offload_pipeline.database`."""
