"""Writes the tables of README.md, results/README.md, docs/ and benchmarks/README.md from the reports and the studies.

    python -m benchmarks.tables

A table stands between the comments `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable

from benchmarks import gpu_table, harness, norms, study_tables, tpu_compile

ROOT = pathlib.Path(__file__).parent.parent


def huge_batch_table() -> str:
    """Returns what an update on 98,304 images took, in two layouts."""
    names = {"one_device": "one device", "two_replicas": "two replicas on two logical devices"}
    report = harness.read_report(harness.REPORTS / "huge_batch.json")["parts"]
    parts = {part["part"]: part for part in report if part["batch"] == 98304}
    columns = ["processor time", "time beside other work", "peak memory of the process", "more than before the update"]
    lines = [f"| layout | {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for part, layout in names.items():
        row = parts[part]
        minutes = [f"{row[key]:.1f} min" for key in ("processor_minutes", "minutes")]
        sizes = [f"{size / 2**30:.1f} GiB" for size in (row["peak_bytes"], row["peak_bytes"] - row["before_bytes"])]
        lines.append(f"| {' | '.join([layout, *minutes, *sizes])} |")
    return "\n".join(lines)


# Page: its tables by name.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"overview": study_tables.overview, "recipe": study_tables.recipe},
    "benchmarks/README.md": {
        "norms, networks": lambda: norms.network_table(harness.read_report(harness.REPORTS / "norms.json")),
        "norms, layers": lambda: norms.layer_table(harness.read_report(harness.REPORTS / "norms.json")),
        "gpu": lambda: gpu_table.markdown(harness.read_report(harness.REPORTS / "gpu.json")),
        "tpu_compile": lambda: tpu_compile.markdown(harness.read_report(harness.REPORTS / "tpu_compile.json")),
    },
    "docs/choosing.md": {"defaults": study_tables.defaults},
    "docs/scale.md": {"huge batch": huge_batch_table},
    "results/README.md": {
        "fashion_mnist": functools.partial(study_tables.by_batch_size, "fashion_mnist"),
        "cifar10": functools.partial(study_tables.with_search, "cifar10"),
    },
}


def filled(page: str) -> str:
    """Returns the text of a page with every table made anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{PAGES[page][found[2]]()}\n{found[3]}"

    text = (ROOT / page).read_text()
    return re.sub(r"(<!-- table: (.+?) -->)\n.*?\n?(<!-- end -->)", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(filled(name))
