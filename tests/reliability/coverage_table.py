"""Which share of the package's lines the tests execute, in each world: the table in docs/reliability.md.

python tests/reliability/coverage_table.py [--write]

It reads the files that `make coverage` leaves, and prints the table and the files below the goal with the lines that no
test executes. It ends with status 1 if a world is below the goal. `--write` writes the table into the page.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import sys
import tempfile
from typing import Any

import coverage

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
GOAL = 95.0
_TF_KERAS = ("tf_largebatch/tf_keras/*", "tf_largebatch/model_garden/*")
# For each world the file that its tests write, and which modules of the package are its own and shared ones.
WORLDS: dict[str, dict[str, Any]] = {
    "Keras 3 on TensorFlow": {"file": ".coverage.tensorflow", "omit": ["tf_largebatch/backend/jax/*", *_TF_KERAS]},
    "Keras 3 on JAX": {"file": ".coverage.jax", "omit": ["tf_largebatch/backend/tensorflow/*", *_TF_KERAS]},
    "tf_keras and Model Garden": {"file": ".coverage.garden", "include": [*_TF_KERAS]},
}


def measured(file: pathlib.Path, **which: list[str]) -> dict[str, Any]:
    """Reads what the tests of a world executed.

    Args:
        file: A data file of coverage.py.
        **which: `omit` or `include`, patterns of the modules.

    Returns:
        The content of coverage.py's JSON report.
    """
    data = coverage.Coverage(data_file=str(file), config_file=str(ROOT / "pyproject.toml"))
    data.load()
    with tempfile.NamedTemporaryFile() as report:
        data.json_report(outfile=report.name, **which)
        return json.loads(pathlib.Path(report.name).read_text())


def row(world: str, report: dict[str, Any]) -> str:
    """A row of the table."""
    total = report["totals"]
    lines = f"{total['covered_lines']:,} of {total['num_statements']:,}"
    shares = f"{total['percent_statements_covered']:.1f} % | {total['percent_branches_covered']:.1f} %"
    return f"| {world} | {len(report['files'])} | {lines} | {shares} |"


def below(report: dict[str, Any]) -> list[str]:
    """The files below the goal, the most missing lines first, each with these lines."""
    files = report["files"].items()
    low = [(path, found) for path, found in files if found["summary"]["percent_statements_covered"] < GOAL]
    low.sort(key=lambda pair: -pair[1]["summary"]["missing_lines"])
    return [
        f"{path}: {found['summary']['percent_statements_covered']:.0f} %, lines {spans(found['missing_lines'])}"
        for path, found in low
    ]


def spans(lines: list[int]) -> str:
    """Line numbers as "3-5, 8"."""
    found: list[list[int]] = []
    for line in lines:
        if found and line == found[-1][-1] + 1:
            found[-1] = [found[-1][0], line]
        else:
            found.append([line])
    return ", ".join("-".join(map(str, span)) for span in found)


def main(arguments: list[str]) -> int:
    table = ["| world | files | lines | of them executed | branches executed |", "|---|---|---|---|---|"]
    status = 0
    for world, which in WORLDS.items():
        file = ROOT / which["file"]
        if not file.exists():
            print(f"{world}: {which['file']} is not there; make coverage writes it.")
            continue
        report = measured(file, **{name: value for name, value in which.items() if name != "file"})
        table.append(row(world, report))
        print(f"{world}, files below {GOAL:.0f} %:", *(below(report) or ["none"]), sep="\n  ")
        status |= report["totals"]["percent_statements_covered"] < GOAL
    print("\n".join(table))
    if "--write" in arguments:
        import backend_table

        text = "\n".join([f"Measured on {datetime.date.today():%-d %B %Y}.", "", *table])
        PAGE.write_text(backend_table.filled(PAGE.read_text(), {"coverage": text}))
    return int(status)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main(sys.argv[1:]))
