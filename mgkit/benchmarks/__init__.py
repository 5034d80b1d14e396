"""Published retrieval benchmarks, one file each, and the retrieval sets in a folder.

Command line: `python -m mgkit.benchmarks fetch holidays --root data` and `... check --root data`.

They are in the folders `instances` and `copies`. To add one, write a file like instances/ukbench.py, with a
`Benchmark` record and a reader that returns a `RetrievalSet`, and name both in find.py (`BENCHMARKS`,
`find_sets`).
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
