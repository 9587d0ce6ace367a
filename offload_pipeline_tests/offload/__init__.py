"""Tests of `offload_pipeline.offload`."""
