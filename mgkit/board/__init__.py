"""The board: each figure printed in the paper beside the measurements of runs; newer figures of others.

Command line: `python -m mgkit.board`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"entries": ["board", "elsewhere"], "text": ["table"]}
)
