"""Benchmarks of metric learning: which images show the same class, one that no training image shows?"""
