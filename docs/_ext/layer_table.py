"""The directive `layer-table`: every layer class with a norm rule, with its equation.

The equations stand in one place, the table of `tf_largebatch/norms/README.md`. A layer that has a rule and is not in
that table is a warning, which `make docs` turns into an error.
"""

from __future__ import annotations

import inspect
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

README = pathlib.Path(__file__).parents[2] / "tf_largebatch" / "norms" / "README.md"
_LOGGER = logging.getLogger(__name__)


def equations(text: str) -> list[tuple[set[str], str, set[str]]]:
    """The rows of the README's table: layer names, equation, files."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if len(cells) == 3 and cells[2].endswith(".py"):
            rows.append((expanded(cells[0]), cells[1], set(re.split(r",\s*", cells[2]))))
    return rows


def expanded(names: str) -> set[str]:
    """The class names in "Conv1DTranspose, 2D, 3D" or "SimpleRNN, LSTM, ... the cells alone"."""
    found: set[str] = set()
    stem: tuple[str, str] | None = None
    for name in re.findall(r"\b[1-3]D\b|\b[A-Z]\w+", names):
        if re.fullmatch(r"[1-3]D", name) and stem:
            name = f"{stem[0]}{name}{stem[1]}"
        found.add(name)
        dimension = re.fullmatch(r"(\w*?)[1-3]D(\w*)", name)
        stem = (dimension[1], dimension[2]) if dimension else None
    return found


def row_of(name: str, rule: Any, rows: list[tuple[set[str], str, set[str]]]) -> int | None:
    """The row of a class: by its name, else by the file of its rule if only one row names that."""
    for number, (names, _, _) in enumerate(rows):
        if name in names:
            return number
    file = rule.__module__.rsplit(".", 1)[-1] + ".py"
    by_file = [number for number, (_, _, files) in enumerate(rows) if file in files]
    return by_file[0] if len(by_file) == 1 else None


def class_name(layer_class: type | str) -> str:
    """The name of a class, which may be given as "package.module.Class"."""
    return layer_class.rsplit(".", 1)[-1] if isinstance(layer_class, str) else layer_class.__name__


def table() -> tuple[list[str], list[str]]:
    """The lines of the table of Keras's layers, in the README's order, and the names of layers without an equation."""
    import keras

    from tf_largebatch.norms import rules

    rows = equations(README.read_text())
    # Layers made of measured layers have no rule of their own.
    names = [{name for name in row if hasattr(keras.layers, name)} for row, _, _ in rows]
    missing = []
    for rule, layer_classes, _ in rules.TABLE:
        for name in map(class_name, layer_classes):
            number = row_of(name, rule, rows)
            if number is None:
                missing.append(name)
            else:
                names[number].add(name)
    return markdown((found, equation) for found, (_, equation, _) in zip(names, rows, strict=True)), missing


def keras_hub_table() -> list[str]:
    """The lines of the table of KerasHub's layers, with the equations of their rules' docstrings."""
    from tf_largebatch.norms.rules import keras_hub

    return markdown(
        ({class_name(name) for name in names}, inspect.getdoc(rule).splitlines()[0])
        for rule, names, _ in keras_hub.TABLE
    )


def markdown(rows: Iterable[tuple[set[str], str]]) -> list[str]:
    """A table of layer names and equations."""
    lines = ["| layer | $G_i$: example $i$'s contribution to the gradient |", "|---|---|"]
    return lines + [
        f"| {', '.join(f'`{name}`' for name in sorted(names))} | {equation} |" for names, equation in rows if names
    ]


class LayerTable(SphinxDirective):
    """Inserts the table of Keras's layers, or of KerasHub's with the argument `keras_hub`."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The parsed table."""
        lines, missing = (keras_hub_table(), []) if self.arguments == ["keras_hub"] else table()
        for name in missing:
            _LOGGER.warning("the layer %s has a rule but no equation in norms/README.md", name)
        self.env.note_dependency(str(README))
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source="layer-table"), self.content_offset, node)
        return node.children


def setup(app: Any) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("layer-table", LayerTable)
    return {"parallel_read_safe": True}
