"""Tests of `offload_pipeline.retention`."""
