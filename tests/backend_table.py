"""Which test files run on which backend, why, and how many cases: the tables in docs/backends.md.

python tests/backend_table.py [PYTHON_OF_MODEL_GARDEN]

A file runs on both backends if tests/jax_paths.txt or tests/jax_paths_long.txt lists it or its directory. Any other
says why not in its docstring, or for all files of a directory in the docstring of their conftest.py, by "TensorFlow
only: reason.", "JAX only: reason." or "No backend: reason.".
"""

from __future__ import annotations

import ast
import collections
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backends.md"
LISTS = ("tests/jax_paths.txt", "tests/jax_paths_long.txt")
# Tests of these directories run in Model Garden's environment.
GARDEN = ("tests/tf_keras", "tests/model_garden")
BOTH, NONE = "both backends", "no backend"
KINDS = (BOTH, "TensorFlow only", "JAX only", NONE)


def test_files() -> list[str]:
    """The paths of all test files, sorted."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py"))


@functools.cache
def listed(lists: tuple[str, ...] = LISTS) -> frozenset[str]:
    """The paths in the lists of what runs on JAX: files and directories."""
    return frozenset(line for name in lists for line in (ROOT / name).read_text().split())


def is_listed(path: str, lists: tuple[str, ...] = LISTS) -> bool:
    """Whether a test file runs on JAX."""
    return any(str(part) in listed(lists) for part in (pathlib.Path(path), *pathlib.Path(path).parents))


@functools.cache
def reason_in(path: pathlib.Path) -> tuple[str, str] | None:
    """The category that a module's docstring names, and the reason in one sentence."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = re.search(r"(TensorFlow only|JAX only|No backend): (.+?)\.?(?=\.\s|\n\n|$)", docstring, re.DOTALL)
    if found is None:
        return None
    kind = NONE if found[1] == "No backend" else found[1]
    return kind, " ".join(found[2].split())


def reason(path: str) -> tuple[str, str] | None:
    """The category and the reason that a test file's directory gives, or the file itself."""
    own = ROOT / path
    directories = [parent for parent in own.parents if ROOT / "tests" in parent.parents]
    for place in (*(directory / "conftest.py" for directory in directories), own):
        if place.exists() and reason_in(place) is not None:
            return reason_in(place)
    return None


def kind_of(path: str) -> str:
    """The category of a test file.

    Raises:
        ValueError: If it has none, or contradicts the lists.
    """
    found = reason(path)
    if found is None:
        if not is_listed(path):
            raise ValueError(
                f"{path} must be listed in {LISTS[0]} or {LISTS[1]}, or say in its docstring why it runs on one "
                "backend: 'TensorFlow only: reason.', 'JAX only: reason.' or 'No backend: reason.'."
            )
        return BOTH
    kind = found[0]
    if is_listed(path) != (kind == "JAX only"):
        remedy = "add it" if kind == "JAX only" else "remove it there or say nothing"
        raise ValueError(f"{path} says {kind!r}, which {' and '.join(LISTS)} contradict: {remedy}.")
    return kind


def one_backend_table() -> str:
    """The files that run on one backend or on none, with the reason; those with one reason in one row."""
    rows: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for path in test_files():
        if kind_of(path) != BOTH:
            rows[reason(path)].append(path)
    lines = ["| runs on | test files | because |", "|---|---|---|"]
    for kind in KINDS[1:]:
        for (of, why), paths in rows.items():
            if of == kind:
                lines.append(f"| {kind} | {', '.join(f'`{shortened(p)}`' for p in grouped(paths))} | {why} |")
    return "\n".join(lines)


def grouped(paths: list[str]) -> list[str]:
    """Directories in place of all of their files."""
    found: list[str] = []
    for path in paths:
        directory = os.path.dirname(path)
        inside = [other for other in test_files() if other.startswith(f"{directory}/")]
        name = directory if len(inside) > 1 and set(inside) <= set(paths) else path
        if name not in found:
            found.append(name)
    return found


def shortened(path: str) -> str:
    """A path within tests/."""
    return path.removeprefix("tests/")


def count_table(counts: dict[str, dict[str, tuple[int, int]]]) -> str:
    """The number of files and of cases in each category.

    Args:
        counts: For each backend, for each file the number of cases that run and how many of them are `long`.
    """
    lines = ["| test files that run on | files | cases on TensorFlow | cases on JAX |", "|---|---|---|---|"]
    for kind in KINDS:
        paths = [path for path in test_files() if kind_of(path) == kind]
        cells = []
        for backend in ("tensorflow", "jax"):
            runs = backend == "tensorflow" or kind in (BOTH, "JAX only")
            cases, long = (sum(counts[backend].get(p, (0, 0))[i] for p in paths) if runs else 0 for i in (0, 1))
            cells.append(f"{cases:,} ({long:,})" if cases else "")
        lines.append(f"| {kind} | {len(paths)} | {' | '.join(cells)} |")
    return "\n".join(lines)


class Counter:
    """A plugin of pytest that counts what a backend would run."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}

    def pytest_collection_modifyitems(self, items: list) -> None:
        for item in items:
            counted = self.found.setdefault(str(item.path.relative_to(ROOT)), [0, 0])
            skipped = any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))
            # JAX has no replicas: see the fixture.
            needs_replicas = os.environ["KERAS_BACKEND"] == "jax" and "two_replicas" in item.fixturenames
            if not (skipped or needs_replicas or any(item.iter_markers("skip"))):
                counted[0] += 1
                counted[1] += item.get_closest_marker("long") is not None


def collect(python: str, backend: str, paths: list[str]) -> dict[str, tuple[int, int]]:
    """Has pytest collect files on a backend and returns for each the number of cases, and of `long` ones."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [python, __file__, "--collect", *paths]
    run = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    found = {path: tuple(numbers) for path, numbers in json.loads(run.stdout.splitlines()[-1]).items()}
    if backend == "jax":  # where a list of its own holds what `make test-long` adds
        found |= {path: (cases, cases) for path, (cases, _) in found.items() if is_listed(path, LISTS[1:])}
    return found


def write_page(garden_python: str | None) -> None:
    """Fills the tables of the page between their comments."""
    in_garden = [path for path in test_files() if path.startswith(GARDEN)]
    others = [path for path in test_files() if not path.startswith(GARDEN)]
    counts = {
        "tensorflow": collect(sys.executable, "tensorflow", [p for p in others if kind_of(p) != "JAX only"]),
        "jax": collect(sys.executable, "jax", [p for p in others if is_listed(p)]),
    }
    if garden_python is not None:
        counts["tensorflow"] |= collect(garden_python, "tensorflow", in_garden)
    tables = {"tests, counts": count_table(counts), "tests, one backend": one_backend_table()}
    PAGE.write_text(filled(PAGE.read_text(), tables))


def filled(text: str, tables: dict[str, str]) -> str:
    """Returns the page with these tables between the comments that name them."""
    for name, table in tables.items():
        pattern = rf"(<!-- table: {re.escape(name)} -->)\n.*?(<!-- end -->)"
        text = re.sub(pattern, lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    if sys.argv[1:2] == ["--collect"]:
        import pytest

        counter = Counter()
        status = pytest.main(["--collect-only", "-qq", "-m", "", *sys.argv[2:]], plugins=[counter])
        print(json.dumps(counter.found))
        sys.exit(status)
    write_page(*(sys.argv[1:] or [None]))
