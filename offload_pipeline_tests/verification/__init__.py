"""Tests of `offload_pipeline.verification`."""
