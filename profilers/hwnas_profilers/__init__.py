"""Workloads -> measurements -> latency tables. Knows no search and no training."""
