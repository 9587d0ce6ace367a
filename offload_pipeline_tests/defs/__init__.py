"""The Dagster layer, run in process on a real database and store."""
