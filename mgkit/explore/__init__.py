"""Figures, interactive explorers and tables of the notebooks."""
