"""The directive `official-configs` lists every YAML file in `official_configs/`, from its header."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

CONFIGS = pathlib.Path(__file__).parents[2] / "official_configs"
_COLUMNS = ("Published", "Here")
_LOGGER = logging.getLogger(__name__)


def header(text: str) -> tuple[str, dict[str, str]]:
    """Returns the first line of a file's leading comment, and its `Key: value` lines with their continuations."""
    lines = [line[1:] for line in text.splitlines() if line.startswith("#")]
    values: dict[str, str] = {}
    key = None
    for line in lines[1:]:
        found = re.match(r" (\w+): +(.*)", line)
        if found:
            key = found[1]
            values[key] = found[2]
        elif key and line.startswith("   "):
            values[key] += " " + line.strip()
        else:
            key = None
    return (lines[0].strip() if lines else ""), values


def table(directory: pathlib.Path = CONFIGS) -> tuple[list[str], list[str]]:
    """Returns the table's lines, and the files of the papers' experiments whose header lacks a column."""
    lines = [f"| configuration | {' | '.join(_COLUMNS).lower()} |", "|---|" + "---|" * len(_COLUMNS)]
    incomplete = []
    for path in sorted(directory.rglob("*.yaml")):
        title, values = header(path.read_text())
        name = path.relative_to(directory).as_posix()
        # The small ones reproduce no experiment of a paper.
        if not title or (path.parent == directory and any(column not in values for column in _COLUMNS)):
            incomplete.append(name)
        cells = [f"`{name}` {title}", *(values.get(column, "") for column in _COLUMNS)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines, incomplete


class OfficialConfigs(SphinxDirective):
    """Inserts the table."""

    def run(self) -> list[nodes.Node]:
        """Returns the parsed table."""
        lines, incomplete = table()
        for name in incomplete:
            _LOGGER.warning("official_configs/%s: the header lacks one of %s", name, ", ".join(_COLUMNS))
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source="official_configs"), self.content_offset, node)
        return node.children


def setup(app: Any) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("official-configs", OfficialConfigs)
    return {"parallel_read_safe": True}
