"""`make demo`: the notebooks in their order, with parameters that they know."""

import nbformat
import papermill
from notebook_support import CONFIGS

from mgkit.config import make
from mgkit.demo import __main__ as demo


def test_the_notebooks_run_in_order_with_parameters_that_they_know(here, monkeypatch):
    ran = {}

    def execute(notebook, copy, *, parameters, **_):
        ran[notebook.stem] = make(CONFIGS[notebook.stem], parameters)
        assert copy.parent.is_dir()
        nbformat.write(nbformat.v4.new_notebook(), copy)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    folder, taken = demo.run_notebooks("e", "mini")
    assert folder.parts[-3:] == ("outputs", "e", "notebooks") and list(ran) == list(CONFIGS) == list(taken)
    assert all((config.experiment, config.data) == ("e", "mini") for config in ran.values())
    assert ran["06_search_your_photos"].photos == ["data/photographs"]
