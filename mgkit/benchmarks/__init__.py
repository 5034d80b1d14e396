"""The published retrieval benchmarks, a file each, and the retrieval sets that a folder holds.

From a shell: `python -m mgkit.benchmarks fetch holidays --root data`, `python -m mgkit.benchmarks check --root data`.
"""

from mgkit.benchmarks.fetch import check, examine, fetch_benchmark, survey
from mgkit.benchmarks.find import BENCHMARKS, find_sets
from mgkit.benchmarks.retrieval_set import RetrievalSet

__all__ = ["BENCHMARKS", "RetrievalSet", "check", "examine", "fetch_benchmark", "find_sets", "survey"]
