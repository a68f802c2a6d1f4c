"""Numbers and pictures, as the programs wrote them.

The directives are `measured-tables`, for every `benchmarks/reports/*.json`, and `result-pictures`, for every run in
`results/`.
"""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

PAGES = pathlib.Path(__file__).parents[1]
BENCHMARKS = PAGES.parent / "benchmarks"
REPORTS = BENCHMARKS / "reports"
RESULTS = PAGES.parent / "results"
_SAID = ("dataset", "model", "optimizer", "batch_size", "epochs", "warmup_epochs", "base_learning_rate", "eta", "seed")
_SPREAD = "_quartiles"
_WRITTEN = {"tpu": "TPU", "clars": "CLARS", "lars": "LARS", "conadv": "ConAdv", "tensorflow": "TensorFlow"}
_LOGGER = logging.getLogger(__name__)


def sections(directory: pathlib.Path = REPORTS, programs: pathlib.Path = BENCHMARKS) -> Iterator[list[str]]:
    """One run of Markdown lines a JSON file, with the picture beside it if there is one."""
    for path in sorted(directory.glob("*.json")):
        program = programs / f"{path.stem}.py"
        lines = [f"## {_heading(path.stem)}", ""]
        if program.exists():
            description = ast.get_docstring(ast.parse(program.read_text())) or ""
            lines += [description.split("\n\n")[0].replace("\n", " "), "", f"`python -m benchmarks.{path.stem}`", ""]
        picture = path.with_suffix(".png")
        if picture.exists():
            lines += [f"![{path.stem.replace('_', ' ')}]({os.path.relpath(picture, PAGES)})", ""]
        yield lines + list(_rendered(json.loads(path.read_text())))


def not_measured(directory: pathlib.Path = BENCHMARKS, reports: pathlib.Path = REPORTS) -> list[str]:
    """The programs that write a JSON file by the flag `--json` and have not: their numbers are missing."""
    programs = [path for path in sorted(directory.glob("*.py")) if '"json"' in path.read_text()]
    return [path.stem for path in programs if not (reports / f"{path.stem}.json").exists()]


def _rendered(content: Any) -> Iterator[str]:
    """Tables of what is a mapping of records or a list of records; the rest in words."""
    if isinstance(content, list):
        if content and all(isinstance(entry, Mapping) for entry in content):
            yield from _table({str(number): entry for number, entry in enumerate(content, 1)}, named=False)
        return
    if not isinstance(content, Mapping):
        return
    if _is_table(content):
        yield from _table(content)
        return
    plain = {name: value for name, value in content.items() if not isinstance(value, Mapping | list)}
    environment = content.get("environment", {})
    said = [f"{_words(name)} {_cell(name, value)}" for name, value in {**environment, **plain}.items()]
    if said:
        yield from ["; ".join(said) + ".", ""]
    parts = {
        name: list(_rendered(value))
        for name, value in content.items()
        if name != "environment" and isinstance(value, Mapping | list)
    }
    for name, lines in parts.items():
        # A heading only where it tells something: one of several parts, or a name with a version in it.
        is_one_table = isinstance(content[name], list) or _is_table(content[name])
        if lines and (len(parts) > 1 or not is_one_table):
            yield from [f"### {_heading(name)}", ""]
        yield from lines


def _is_table(content: Mapping[str, Any]) -> bool:
    rows = list(content.values())
    return bool(rows) and all(isinstance(row, Mapping) and row and not _deep(row) for row in rows)


def _deep(row: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in row.values())


def _table(rows: Mapping[str, Mapping[str, Any]], named: bool = True) -> Iterator[str]:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = [name for name in columns if not name.endswith(_SPREAD) and not _is_long(rows, name)]
    # What is the same in all rows is said once, above.
    same = [name for name in columns if len(rows) > 2 and _is_constant(rows, name)]
    if same:
        (first, *_) = rows.values()
        said = [f"{_words(name)} {_cell(name, first[name])}" for name in same]
        yield from [f"In all rows: {'; '.join(said)}.", ""]
    columns = [name for name in columns if name not in same]
    heads = ([""] if named else []) + [_words(name) for name in columns]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for label, row in rows.items():
        cells = [_readable(label)] if named else []
        for name in columns:
            text = _cell(name, row.get(name)) if name in row else ""
            spread = row.get(name + _SPREAD)
            if spread and spread[0] != spread[1]:
                text += f" ({_cell(name, spread[0])} to {_cell(name, spread[1])})"
            cells.append(text)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _is_long(rows: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    """Whether a column holds raw measurements rather than a figure."""
    return any(isinstance(row.get(name), list) and len(row[name]) > 4 for row in rows.values())


def _is_constant(rows: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    """Whether a column tells the rows apart nowhere and has no spread."""
    values = [row.get(name, _SPREAD) for row in rows.values()]
    return all(value == values[0] for value in values) and not any(name + _SPREAD in row for row in rows.values())


def _words(name: str) -> str:
    for suffix, unit in (("_seconds", ", ms"), ("_milliseconds", ", ms"), ("_bytes", ", GiB")):
        if name.endswith(suffix):
            name = name.removesuffix(suffix) + unit
    words = {"seconds": "ms", "milliseconds": "ms", "bytes": "GiB", "bytes_accessed": "accessed, GiB"}
    return words.get(name, _readable(name))


def _heading(name: str) -> str:
    words = [_WRITTEN.get(word, word) for word in re.split(r"\b", _words(name))]
    text = "".join(words)
    return text[:1].upper() + text[1:]


def _readable(name: str) -> str:
    return name.replace("_", " ").replace("|", "\\|")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "all" if name == "norm_examples" else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{_words(part)} {_cell(part, found)}" for part, found in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(name, entry) for entry in value)
    if isinstance(value, int | float):
        if name.endswith("seconds") and not name.endswith("milliseconds"):
            value = 1e3 * value
        elif name.endswith("bytes") or name == "bytes_accessed":
            value = value / 2**30
        if isinstance(value, int):
            return f"{value:,}" if value >= 10_000 else str(value)
        if abs(value) >= 1e6:
            return f"{value:.3g}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return str(value).replace("|", "\\|")


class MeasuredTables(SphinxDirective):
    """Inserts a section a file."""

    def run(self) -> list[nodes.Node]:
        """The parsed sections."""
        for path in REPORTS.glob("*.json"):
            self.env.note_dependency(str(path))
        for program in not_measured():
            command = f"python -m benchmarks.{program} --json=benchmarks/reports/{program}.json"
            _LOGGER.warning("benchmarks/reports/%s.json is missing: run `%s`", program, command)
        node = nodes.section()
        node.document = self.state.document
        for lines in sections():
            self.state.nested_parse(StringList(lines, source="benchmarks"), self.content_offset, node, match_titles=1)
        return node.children


class ResultPictures(SphinxDirective):
    """Shows the curves of every run in `results/`, with what was trained."""

    def run(self) -> list[nodes.Node]:
        """The parsed pictures."""
        node = nodes.section()
        node.document = self.state.document
        for lines in result_pictures():
            self.state.nested_parse(StringList(lines, source="results"), self.content_offset, node, match_titles=1)
        return node.children


def result_pictures(directory: pathlib.Path = RESULTS) -> Iterator[list[str]]:
    """Markdown lines for the picture of each run."""
    for picture in sorted(directory.rglob("curves.png")):
        run = picture.parent
        name = run.relative_to(directory).as_posix()
        yield [f"### {name}", "", f"![Curves and layer-wise rates]({os.path.relpath(picture, PAGES)})", ""]
        config = run / "config.json"
        if config.exists():
            arguments = json.loads(config.read_text()).get("arguments", {})
            said = [f"{_words(key)} {arguments[key]}" for key in _SAID if arguments.get(key) is not None]
            yield ["; ".join(said) + ".", ""]


def setup(app: Any) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("measured-tables", MeasuredTables)
    app.add_directive("result-pictures", ResultPictures)
    return {"parallel_read_safe": True}
