"""Tables of bad input with the message that each gets, in docs/reliability.md.

python tests/refusal_tables.py

The rows are in two files: of Keras 3 and of the command lines, and of tf_keras and Model Garden, which have tests in an
environment of their own.
"""

from __future__ import annotations

import pathlib
import re
import runpy

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
# Name of the table on the page -> file with its rows.
FILES = {
    "bad input": "tests/reliability/bad_input.py",
    "bad input, Model Garden": "tests/model_garden/bad_input_garden.py",
}
# Stands for any text: a path, or what another program says.
ANY = "[...]"


def refusals(name: str) -> dict[str, dict[str, str]]:
    """The rows of a table: part of the package -> input -> message."""
    found: dict[str, dict[str, str]] = runpy.run_path(str(ROOT / FILES[name]))["REFUSALS"]
    return found


def pattern(message: str) -> str:
    """The regular expression of a message."""
    return ".*".join(re.escape(part) for part in message.split(ANY))


def cell(text: str) -> str:
    """A text as code in a cell of a table."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}".replace("|", "\\|") if fence == "``" else f"`{text}`".replace("|", "\\|")


def table(name: str) -> str:
    """The tables of the page, one for each part of the package."""
    lines = []
    for group, rows in refusals(name).items():
        lines += [f"### {group}", "", "| input | message |", "|---|---|"]
        lines += [f"| {cell(call)} | {cell(message)} |" for call, message in rows.items()] + [""]
    return "\n".join(lines)


def filled(text: str) -> str:
    """Returns the page with the tables between their comments."""
    for name in FILES:
        text = re.sub(
            rf"(<!-- table: {name} -->)\n.*?(<!-- end -->)",
            lambda found, name=name: f"{found[1]}\n{table(name)}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
