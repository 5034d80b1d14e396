"""Source code in notebooks: the lines of the file, with short docstrings, highlighted where possible."""

import ast
import inspect
import re
from textwrap import dedent

import pytest
from IPython.core.formatters import DisplayFormatter
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

from mgkit import finetune, losses, pooling, samplers, whitening
from mgkit.explore.source import short_docstrings, show_source

DEFINITIONS = (
    pooling.gem, pooling.GeM, samplers.RepeatedAugmentationSampler.order, losses.MarginLoss,
    losses.distance_weighted_probabilities, finetune.descend_p, whitening.fold,
)  # fmt: skip


def without_docstrings(source):
    """The code as a tree, without docstrings and comments."""
    tree = ast.parse(dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.__qualname__)
def test_the_code_is_that_of_the_package(definition):
    source = inspect.getsource(definition)
    assert without_docstrings(show_source(definition)) == without_docstrings(source)
    comments = [line.strip() for line in source.splitlines() if line.strip().startswith("#")]
    assert all(comment in show_source(definition) for comment in comments)


def test_docstrings_are_cut_after_their_first_line():
    source = '''\
class A:
    """A class.

    Two `quoted` words.
    """

    def f(self):  # a comment stays
        """One line."""
        text = """not a
        docstring"""
        return text

    async def g(self):
        """First
        second."""
'''
    assert short_docstrings(source).splitlines() == [
        "class A:",
        '    """A class."""',
        "",
        "    def f(self):  # a comment stays",
        '        """One line."""',
        '        text = """not a',
        '        docstring"""',
        "        return text",
        "",
        "    async def g(self):",
        '        """First"""',
    ]


def test_several_definitions_stand_one_below_the_other():
    both = show_source(pooling.gem, whitening.fold)
    assert both == f"{show_source(pooling.gem)}\n\n{show_source(whitening.fold)}"


def test_it_is_plain_text_in_a_terminal_and_highlighted_in_a_notebook_and_its_export():
    shown = show_source(pooling.gem)
    assert repr(shown) == str(shown) and repr(shown).startswith("def gem(")
    data, metadata = DisplayFormatter().format(shown)
    assert set(data) == {"text/plain", "text/html"} and data["text/plain"] == shown
    cell = new_code_cell(outputs=[new_output("display_data", data=data, metadata=metadata)])
    page, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[cell]))
    assert re.search(r'<span style="color: #\w+; font-weight: bold">def</span>', page)
    assert "gem" in page and "<style" not in data["text/html"]
