"""Benchmarks of copy detection: which images are edited copies of a query?"""
