"""The directive `source-api` documents classes from their source, where the module cannot be imported.

`tf_largebatch.model_garden` and `tf_largebatch.tf_keras` need tf_keras, which has a separate environment.
"""

from __future__ import annotations

import ast
import pathlib
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from markdown_docstrings import to_rst
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective

ROOT = pathlib.Path(__file__).parents[2]


def class_lines(path: pathlib.Path, module: str, name: str, config: Any) -> list[str]:
    """Returns a `py:class` directive with the signature of `__init__` and the class's docstring.

    Raises:
        ValueError: If there is no such class, or it has no docstring.
    """
    found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name]
    docstring = ast.get_docstring(found[0]) if found else None
    if docstring is None:
        raise ValueError(f"{path} has no documented class {name}.")
    signatures = [ast.unparse(node.args) for node in found[0].body if getattr(node, "name", "") == "__init__"]
    arguments = signatures[0].removeprefix("self, ") if signatures else ""
    body = str(GoogleDocstring(to_rst(docstring.split("\n")), config, what="class")).split("\n")
    return [f".. py:class:: {module}.{name}({arguments})", "", *(f"   {line}".rstrip() for line in body), ""]


class SourceApi(SphinxDirective):
    """Documents one class: `{source-api} FILE MODULE CLASS`."""

    required_arguments = 3

    def run(self) -> list[nodes.Node]:
        """Returns the parsed `py:class` directive."""
        file, module, name = self.arguments
        self.env.note_dependency(str(ROOT / file))
        lines = ["```{eval-rst}", *class_lines(ROOT / file, module, name, self.config), "```"]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=file), self.content_offset, node)
        return node.children


def setup(app: Any) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("source-api", SourceApi)
    return {"parallel_read_safe": True}
