"""Retention as Dagster objects: what expired, what no row names, and whether a table looks wrong."""
