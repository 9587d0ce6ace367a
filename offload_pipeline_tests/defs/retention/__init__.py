"""Assets, check, jobs and schedules of retention."""
