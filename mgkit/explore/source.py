"""Source code of the package, shown in a notebook."""

import ast
import inspect
from collections.abc import Callable
from textwrap import dedent

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

# Colours are written into the page: exported and untrusted notebooks lose style sheets.
HTML = HtmlFormatter(noclasses=True, nobackground=True, prestyles="font-family: monospace; line-height: 1.3")


class Source(str):
    """Python source: highlighted by notebooks and their exports, plain text elsewhere."""

    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        return highlight(self, PythonLexer(), HTML)


def show_source(*definitions: Callable) -> Source:
    """The source of functions, methods or classes, read from their files.

    Of each docstring, the first line stays: the notebook explains the rest.
    """
    return Source("\n\n".join(short_docstrings(dedent(inspect.getsource(each))) for each in definitions))


def short_docstrings(source: str) -> str:
    """The source, with the first line of each docstring only."""
    lines = source.splitlines()
    documented = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    found = [node.body[0] for node in nodes if ast.get_docstring(node)]
    for text in sorted(found, key=lambda node: node.lineno, reverse=True):  # from below: line numbers hold
        if text.end_lineno > text.lineno:
            lines[text.lineno - 1 : text.end_lineno] = [lines[text.lineno - 1] + '"""']
    return "\n".join(lines)
