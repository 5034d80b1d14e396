"""Exact and approximate nearest neighbours, and the retrieval protocols."""
