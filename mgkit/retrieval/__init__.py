"""Exact and approximate nearest neighbours, re-ranking, and the retrieval protocols."""
