"""The directive `layer-table`: every layer class in the registry of norm rules, with its equation.

The equations stand in one place, the table of `tf_largebatch/norms/README.md`. A layer that the registry knows and the
table does not is a warning, which `make docs` turns into an error.
"""

from __future__ import annotations

import pathlib
import re
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


def row_of(layer_class: type, rule: Any, rows: list[tuple[set[str], str, set[str]]]) -> int | None:
    """The row of a registered class: by its name, else by the file of its rule if only one row names that."""
    for number, (names, _, _) in enumerate(rows):
        if layer_class.__name__ in names:
            return number
    file = rule.__module__.rsplit(".", 1)[-1] + ".py"
    by_file = [number for number, (_, _, files) in enumerate(rows) if file in files]
    return by_file[0] if len(by_file) == 1 else None


def table() -> tuple[list[str], list[str]]:
    """The table's lines, in the README's order, and the names of the layers without an equation."""
    import keras

    from tf_largebatch import norms

    rows = equations(README.read_text())
    # Layers made of measured layers have no rule of their own.
    names = [{name for name in row if hasattr(keras.layers, name)} for row, _, _ in rows]
    missing = []
    for layer_class in norms.KERAS.layer_classes():
        number = row_of(layer_class, norms.KERAS._entries[layer_class].rule, rows)
        if number is None:
            missing.append(layer_class.__name__)
        else:
            names[number].add(layer_class.__name__)
    lines = ["| layer | `G_i`: example i's contribution to the gradient |", "|---|---|"]
    lines += [
        f"| {', '.join(f'`{name}`' for name in sorted(found))} | {equation} |"
        for found, (_, equation, _) in zip(names, rows, strict=True)
        if found
    ]
    return lines, missing


class LayerTable(SphinxDirective):
    """Inserts the table."""

    def run(self) -> list[nodes.Node]:
        """The parsed table."""
        lines, missing = table()
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
