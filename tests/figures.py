"""Figures drawn for tests."""

import io
import warnings

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def saved(draw, *args, **options) -> Figure:
    """The figure, once it was drawn and saved with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(*args, **options)
        figure.savefig(io.BytesIO(), format="png", dpi=60)  # not "tight", which lays it out once more
    assert isinstance(figure, Figure)
    assert not plt.get_fignums(), "a pyplot window is left open"
    return figure
