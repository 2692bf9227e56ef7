"""Latency of a genotype, expected latency of a supernet, and what calibrates both."""
