"""The Dagster layer: the same concerns as the package, as assets, checks, jobs, sensors and schedules. No SQL here."""
