"""Benchmarks of instance retrieval: which images show the same object, building or scene?"""
