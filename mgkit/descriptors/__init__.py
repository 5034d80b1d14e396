"""Descriptors as files, which other programs read without the kit: numpy, faiss, a csv and a manifest."""
