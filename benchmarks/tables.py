"""Writes the tables of benchmarks/README.md from the reports, between the comments that name them.

python -m benchmarks.tables
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

from benchmarks import gpu_table, harness, norms, tpu_compile

PAGE = pathlib.Path(__file__).with_name("README.md")
TABLES: dict[str, Callable[[], str]] = {
    "norms, networks": lambda: norms.network_table(harness.read_report(harness.REPORTS / "norms.json")),
    "norms, layers": lambda: norms.layer_table(harness.read_report(harness.REPORTS / "norms.json")),
    "gpu": lambda: gpu_table.markdown(harness.read_report(harness.REPORTS / "gpu.json")),
    "tpu_compile": lambda: tpu_compile.markdown(harness.read_report(harness.REPORTS / "tpu_compile.json")),
}


def filled(text: str) -> str:
    """Returns the page with every table made anew from its report."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    return re.sub(r"(<!-- table: (.+?) -->)\n.*?\n(<!-- end -->)", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
