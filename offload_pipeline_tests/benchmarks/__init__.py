"""The benchmarks' parts, record and report; what they measure is measured by `make bench`."""
