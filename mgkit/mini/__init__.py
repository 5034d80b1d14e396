"""The embedded dataset: drawn scenes of drawn objects, for a first run without downloads."""

from mgkit.mini.make import MiniSizes, make_mini
from mgkit.mini.shapes import CLASS_NAMES

__all__ = ["CLASS_NAMES", "MiniSizes", "make_mini"]
