"""Converts docstrings from Markdown to reStructuredText, which Sphinx's autodoc expects.

The docstrings use two things of Markdown: code in single backticks, and indented blocks for equations. A `|` or a
single `*` is an ordinary character.
"""

from __future__ import annotations

import re
from typing import Any

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Examples?|Notes?):$")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# Emphasis keeps its stars.
_SPECIAL = re.compile(r"(\*\*?[^\s*](?:[^*]*[^\s*])?\*\*?(?!\w))|([*|])|(\w)_(?=\W|$)")


def to_rst(lines: list[str]) -> list[str]:
    """Returns the docstring as reStructuredText; napoleon converts Google's sections later."""
    converted: list[str] = []
    in_section = False
    for block, indent in _blocks(lines):
        if indent == 0:
            in_section = bool(_SECTION.match(block[0]))
        if any(line.lstrip().startswith(">>>") for line in block):
            converted += block
        elif indent > 0 and not in_section:
            # An indented block outside a section is an equation or a program.
            if not (converted and converted[-2:-1] and converted[-2].startswith("    ")):
                converted += [".. code-block:: text", ""]
            converted += block
        else:
            text = _inline("\n".join(block))
            # Lists are written with * and -.
            converted += re.sub(r"^\+ ", r"\\+ ", text).split("\n")
        converted.append("")
    return converted


def _blocks(lines: list[str]) -> list[tuple[list[str], int]]:
    """Returns the paragraphs, with the indentation of their first lines."""
    blocks: list[tuple[list[str], int]] = []
    current: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            current.append(line)
        elif current:
            blocks.append((current, len(current[0]) - len(current[0].lstrip())))
            current = []
    return blocks


def _inline(text: str) -> str:
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [_escaped(text[end : match.start()]), f"``{' '.join(match[1].split())}``"]
        # reStructuredText wants a literal's end to be the end of a word.
        if re.match(r"\w", text[match.end() : match.end() + 1]):
            parts.append("\\ ")
        end = match.end()
    return "".join([*parts, _escaped(text[end:])])


def _escaped(text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        emphasis, character, letter = match.groups()
        if emphasis:
            return emphasis
        return f"\\{character}" if character else f"{letter}\\_"

    return _SPECIAL.sub(escape, text)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def setup(app: Any) -> dict[str, Any]:
    """Runs before napoleon, which has the default priority of 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}
