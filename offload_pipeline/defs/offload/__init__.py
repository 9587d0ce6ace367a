"""Offload as Dagster objects: the queue, the stored payloads, the released rows, and what launches them."""
