"""Assets, jobs, sensor and schedule of the offload."""
