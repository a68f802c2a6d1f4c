"""Equations as MathML, which every browser draws by itself: no script, no font, no picture, in light and in dark.

Pages write them as `$...$` and `$$...$$`, which GitHub shows as well.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

import latex2mathml.converter
from docutils import nodes

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
_BARS = "\N{DOUBLE VERTICAL LINE}|"
_FORMS = {"l": "prefix", "r": "postfix"}


def mathml(latex: str, display: bool = False) -> str:
    """Returns an equation in LaTeX as an element `<math>`.

    Raises:
        ValueError: If a command is unknown to latex2mathml.
    """
    # GitHub has `aligned`; latex2mathml knows the same layout by another name.
    known = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", latex)
    element = latex2mathml.converter.convert_to_element(known, display="block" if display else "inline")
    for node in element.iter():
        node.text = html.unescape(node.text) if node.text else None
        if (node.text or "").startswith("\\"):
            raise ValueError(f"latex must consist of commands that latex2mathml knows; received {node.text}.")
        _join_letters(node)
    # A bar says which side it opens: between two letters a browser takes it for an operator, with space around it.
    bars = [node for node in element.iter("mo") if node.text and node.text in _BARS]
    for node, side in zip(bars, re.findall(r"\\([lr])[vV]ert", latex), strict=True):
        node.attrib |= {"form": _FORMS[side], "stretchy": "false"}
    # MathML Core, which browsers implement, has no `columnalign`: each cell says where its content stands.
    for row in element.iter("mtr"):
        for number, cell in enumerate(row.iter("mtd")):
            side = cell.attrib.pop("columnalign", "center")
            gap = "1.5em" if number and number % 2 == 0 else "0"
            cell.set("style", f"text-align: {side}; padding-left: {gap}; padding-right: 0")
    element.set("xmlns", _NAMESPACE)
    return ElementTree.tostring(element, encoding="unicode")


def _join_letters(row: ElementTree.Element) -> None:
    """Makes one upright word of the letters of a word in `mathrm`."""
    if len(row) > 1 and all(node.tag == "mi" and node.get("mathvariant") == "normal" for node in row):
        word = html.unescape("".join(node.text or "" for node in row))
        for node in list(row):
            row.remove(node)
        row.append(ElementTree.Element("mi"))
        row[0].text = word


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Writes an equation within a line."""
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Writes an equation of its own lines, which scrolls inside itself where the page is narrow."""
    translator.body.append(f'<div class="math-block">{mathml(node.astext(), display=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Registers the renderer."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
