"""Runs a quick selection of the tests with several versions of Python, Keras, TensorFlow and JAX.

python tests/packaging/matrix.py DIST [ROW ...]

DIST holds the wheel, as `make dist` leaves it: its requirements are installed into a clean environment for each row,
then the tests of the checkout run there. A row adds a line to reports/matrix.jsonl; a row that is there is done again
only when it is named. At the end the table in docs/reliability.md is written. The Pythons are found on the path as
python3.10 and so on.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from typing import Any

from environments import (
    REPORTS,
    ROOT,
    CommandError,
    Environment,
    Records,
    attempt,
    clean_environment,
    interpreter,
    versions,
    write_table,
)

RECORDS = Records(REPORTS / "matrix.jsonl", ("row",))
# About two minutes of one core: mathematics, updates, norms of every layer, both wrappers, saving, private interfaces.
QUICK = (
    "tests/core",
    "tests/conadv/test_conadv_saving.py",
    "tests/norms/test_every_keras_layer.py",
    "tests/optimizers/test_optimizer_base.py",
    "tests/optimizers/test_optimizer_serialization.py",
    "tests/optimizers/test_update.py",
    "tests/test_check.py",
    "tests/test_files.py",
    "tests/test_keras_internals.py",
    "tests/training/test_large_batch_model.py",
)
# JAX compiles each step of the others, which takes ten times as long.
QUICK_ON_JAX = (
    *(f"tests/core/test_{name}.py" for name in ("balls", "gradient_norms", "momentum", "rates", "schedules")),
    "tests/optimizers/test_optimizer_base.py",
    "tests/optimizers/test_update.py",
    "tests/test_check.py",
    "tests/test_files.py",
    "tests/test_keras_internals.py",
)


def oldest() -> tuple[str, ...]:
    """The versions that `make test-oldest` installs."""
    return tuple(re.search(r"^OLDEST := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())


def oldest_jax() -> tuple[str, ...]:
    """The oldest JAX that setup.py allows, with the oldest Keras."""
    floor = re.search(r'"jax>=([\d.]+)"', (ROOT / "setup.py").read_text())[1]
    return (f"jax=={floor}", *(pin for pin in oldest() if pin.startswith("keras==")))


@dataclasses.dataclass(frozen=True)
class Row:
    """An environment of the table.

    Attributes:
        python: such as "3.12".
        backend: of Keras; also the name of the extra.
        requirements: what is installed together with the wheel; without it the newest versions that fit.
        instead_of_keras: a package that replaces keras once all is installed.
    """

    python: str
    backend: str
    requirements: tuple[str, ...] = ()
    instead_of_keras: str | None = None


# The most important first.
ROWS = {
    "3.10 oldest TensorFlow": Row("3.10", "tensorflow", oldest()),
    "3.12 newest TensorFlow": Row("3.12", "tensorflow"),
    "3.12 newest JAX": Row("3.12", "jax"),
    "3.11 oldest JAX": Row("3.11", "jax", oldest_jax()),
    "3.10 newest TensorFlow": Row("3.10", "tensorflow"),
    "3.12 Keras of the night": Row("3.12", "tensorflow", instead_of_keras="keras-nightly"),
    "3.11 newest TensorFlow": Row("3.11", "tensorflow"),
    "3.11 newest JAX": Row("3.11", "jax"),
    "3.12 oldest TensorFlow": Row("3.12", "tensorflow", oldest()),
    "3.11 oldest TensorFlow": Row("3.11", "tensorflow", oldest()),
}


def tests(row: Row, wheel: pathlib.Path) -> dict[str, Any]:
    """Installs what a row names and runs the tests there."""
    with clean_environment(row.python) as environment:
        try:
            environment.install(f"{wheel}[{row.backend}]", "pytest", *row.requirements)
            if row.instead_of_keras is not None:
                environment.run("-m", "pip", "uninstall", "--quiet", "--yes", "keras")
                environment.install("--pre", row.instead_of_keras)
        except CommandError as error:
            return {"result": "cannot be installed", "reason": str(error)}
        found = counted(environment, row.backend)
        packages = environment.packages(row.backend)
    named = versions(packages)
    if row.instead_of_keras is not None:
        named["keras"] = packages[row.instead_of_keras]["version"]
    return {"result": "passes" if not found["failures"] else "fails", "versions": named, **found}


def counted(environment: Environment, backend: str) -> dict[str, Any]:
    """Runs the quick selection and returns how many tests passed, failed and were skipped, and which failed."""
    paths = QUICK_ON_JAX if backend == "jax" else QUICK
    pytest = (environment.python, "-m", "pytest", "-p", "no:cacheprovider", *paths)
    _, printed = attempt(*pytest, backend=backend, cwd=ROOT)
    print(printed, file=sys.stderr)
    summary = printed.splitlines()[-1]
    numbers = {kind: number(summary, kind) for kind in ("passed", "failed", "skipped")}
    numbers["failed"] += number(summary, "error")
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
    if not numbers["passed"] and not failures:
        failures = [printed[-300:]]
    return {**numbers, "failures": failures}


def number(summary: str, kind: str) -> int:
    """The number before a word in pytest's last line."""
    found = re.search(rf"(\d+) {kind}", summary)
    return int(found[1]) if found else 0


def table(records: list[dict[str, Any]]) -> str:
    """A line for each row that was run."""
    columns = ["Python", "Keras", "runs on", "passed", "failed", "skipped", "date"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    by_name = {record["row"]: record for record in records}
    for name, row in ROWS.items():
        record = by_name.get(name)
        if record is None:
            cells = ["", name.split(" ", 1)[1], "not run", "", "", ""]
        elif "versions" not in record:
            cells = ["", f"{name}: {record['reason']}".replace("|", "\\|"), "", "", "", record["date"]]
        else:
            named = record["versions"]
            title = {"tensorflow": "TensorFlow", "jax": "JAX"}[row.backend]
            cells = [named["keras"], f"{title} {named[row.backend]}"]
            cells += [f"{record[kind]:,}" for kind in ("passed", "failed", "skipped")] + [record["date"]]
        lines.append(f"| {row.python} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(dist: pathlib.Path, *names: str) -> None:
    """Does the rows that are named, else all that the report does not have.

    Raises:
        SystemExit: If tests fail.
    """
    (wheel,) = dist.resolve().glob("*.whl")
    for name in names or ROWS:
        if interpreter(ROWS[name].python) is None:
            print(f"{name}: python{ROWS[name].python} is not on the path: not run")
            continue
        RECORDS.check(lambda row=ROWS[name]: tests(row, wheel), again=bool(names), row=name)
    write_table("versions", table(RECORDS.read()))
    failures = [f"{record['row']}: {record['failures']}" for record in RECORDS.read() if record["result"] == "fails"]
    sys.exit("\n".join(failures) or None)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
