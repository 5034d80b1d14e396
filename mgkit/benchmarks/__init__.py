"""The published retrieval benchmarks, a file each, and the retrieval sets that a folder holds.

From a shell: `python -m mgkit.benchmarks fetch holidays --root data`, `python -m mgkit.benchmarks check --root data`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fetch": ["examine", "fetch_benchmark", "survey"],
        "find": ["BENCHMARKS", "find_sets"],
        "retrieval_set": ["RetrievalSet"],
    },
)
