"""The directive `source-api` documents names from their source, where the module cannot be imported.

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


def lines_of(path: pathlib.Path, module: str, name: str, config: Any) -> list[str]:
    """Returns the directive of a class, with the signature of `__init__`, of a function, or of a constant.

    Raises:
        ValueError: If there is none of this name, or a class or function has no docstring.
    """
    found = [node for node in ast.parse(path.read_text()).body if name in _names(node)]
    if found and isinstance(found[0], ast.Assign):
        return [f".. py:data:: {module}.{name}", "", f"   ``{ast.unparse(found[0].value)}``", ""]
    docstring = ast.get_docstring(found[0]) if found else None  # type: ignore[arg-type]
    if docstring is None:
        raise ValueError(f"{path} has no documented class or function {name}.")
    is_class = isinstance(found[0], ast.ClassDef)
    body = found[0].body if is_class else found  # type: ignore[attr-defined]
    wanted = "__init__" if is_class else name
    signatures = [ast.unparse(node.args) for node in body if getattr(node, "name", "") == wanted]
    arguments = signatures[0].removeprefix("self, ") if signatures else ""
    said = str(GoogleDocstring(to_rst(docstring.split("\n")), config, what="class" if is_class else "function"))
    lines = (f"   {line}".rstrip() for line in said.split("\n"))
    return [f".. py:{'class' if is_class else 'function'}:: {module}.{name}({arguments})", "", *lines, ""]


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()


class SourceApi(SphinxDirective):
    """Documents one name: `{source-api} FILE MODULE NAME`."""

    required_arguments = 3

    def run(self) -> list[nodes.Node]:
        """Returns the parsed directive."""
        file, module, name = self.arguments
        self.env.note_dependency(str(ROOT / file))
        lines = ["```{eval-rst}", *lines_of(ROOT / file, module, name, self.config), "```"]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=file), self.content_offset, node)
        return node.children


def setup(app: Any) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("source-api", SourceApi)
    return {"parallel_read_safe": True}
