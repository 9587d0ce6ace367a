"""Tests against a real PostgreSQL and a real S3 server; the tree mirrors `offload_pipeline`."""
