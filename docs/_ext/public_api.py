"""The directives `public-api` and `public-names`.

`public-api` documents names of a module's `__all__`, all of them or some. `public-names` lists all public names of the
package, each with its summary and a link: what is public stands in the `__all__` of these modules, and nowhere else.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

# The modules whose names are public. The packages whose names `tf_largebatch` itself exports are not among them.
MODULES = (
    "tf_largebatch",
    "tf_largebatch.callbacks",
    "tf_largebatch.norms",
    "tf_largebatch.analysis",
    "tf_largebatch.batch_size",
    "tf_largebatch.train",
    "tf_largebatch.study",
    "tf_largebatch.data",
    "tf_largebatch.models",
    "tf_largebatch.core.rates",
    "tf_largebatch.core.momentum",
    "tf_largebatch.core.exclusions",
    "tf_largebatch.core.schedules",
    "tf_largebatch.core.noise_scale",
    "tf_largebatch.core.pgd",
)


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


def own_names(module_name: str) -> list[str]:
    """Returns the exports of a module without those that an earlier one of `MODULES` exports too, and modules."""
    earlier = MODULES[: MODULES.index(module_name)]
    known = {id(_thing(other, name)) for other in earlier for name in exported(other)}
    things = {name: _thing(module_name, name) for name in exported(module_name)}
    return [name for name, thing in things.items() if id(thing) not in known and not inspect.ismodule(thing)]


def name_rows(module_name: str) -> list[str]:
    """Returns a table of a module's names, each with the first line of its docstring."""
    rows = ["| name | what it does |", "|---|---|"]
    for name in own_names(module_name):
        thing = _thing(module_name, name)
        described = inspect.isclass(thing) or inspect.isroutine(thing)
        summary = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ") if described else "a constant"
        rows.append(f"| {{py:obj}}`~{module_name}.{name}` | {summary.replace('|', chr(92) + '|')} |")
    return rows


def _thing(module_name: str, name: str) -> Any:
    return getattr(importlib.import_module(module_name), name)


class PublicApi(SphinxDirective):
    """Documents the exports of the module that is its argument: those of `:only:`, or all that no module before has."""

    required_arguments = 1
    option_spec: ClassVar = {"only": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Returns the parsed autodoc directives."""
        module = self.arguments[0]
        lines = ["```{eval-rst}"]
        for name in self.options["only"].split() if "only" in self.options else own_names(module):
            lines += autodoc_lines(module, name)
        lines.append("```")
        return _parsed(self, lines, f"public-api {module}")


class PublicNames(SphinxDirective):
    """Lists the public names of all modules."""

    def run(self) -> list[nodes.Node]:
        """Returns the parsed tables."""
        lines = []
        for module in MODULES:
            lines += [f"**{module}**", "", *name_rows(module), ""]
        return _parsed(self, lines, "public-names")


def _parsed(directive: SphinxDirective, lines: list[str], source: str) -> list[nodes.Node]:
    node = nodes.container()
    directive.state.nested_parse(StringList(lines, source=source), directive.content_offset, node)
    return node.children


def setup(app: Any) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("public-api", PublicApi)
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True}
