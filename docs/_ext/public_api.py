"""The directive `public-api` documents every name in a module's `__all__`, so that none can be forgotten."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def exported(module_name: str) -> list[str]:
    """Returns the names in a module's `__all__`, or its public definitions in the order of the source."""
    module = importlib.import_module(module_name)
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("__")]
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", None) == module_name
        and (inspect.isclass(thing) or inspect.isfunction(thing))
    ]


def autodoc_lines(module_name: str, name: str) -> list[str]:
    """Returns the autodoc directive of one name."""
    thing = getattr(importlib.import_module(module_name), name)
    path = f"{module_name}.{name}"
    if inspect.isclass(thing):
        return [f".. autoclass:: {path}", "   :members:", ""]
    if inspect.isroutine(thing):
        return [f".. autofunction:: {path}", ""]
    return [f".. py:data:: {path}", "", f"   {type(thing).__name__}", ""]


class PublicApi(SphinxDirective):
    """Documents the exports of the module that is its argument, except those of the `:except-of:` modules."""

    required_arguments = 1
    option_spec: ClassVar = {"except": directives.unchanged, "except-of": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Returns the parsed autodoc directives."""
        module = self.arguments[0]
        left_out = set(self.options.get("except", "").split())
        for other in self.options.get("except-of", "").split():
            left_out |= set(exported(other))
        lines = ["```{eval-rst}"]
        for name in exported(module):
            if name not in left_out:
                lines += autodoc_lines(module, name)
        lines.append("```")
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=f"public-api {module}"), self.content_offset, node)
        return node.children


def setup(app: Any) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("public-api", PublicApi)
    return {"parallel_read_safe": True}
