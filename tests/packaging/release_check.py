"""Installs the wheel with each extra into a clean environment of each Python, and tries it there.

python tests/packaging/release_check.py DIST [PYTHON ...]

DIST holds the wheel and the source distribution, as `make dist` leaves them. The Pythons are found on the path as
python3.10 and so on. Every check adds a line to reports/release_check.jsonl; a check of the same wheel that is there is
not done again. At the end the table in docs/reliability.md is written.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from environments import (
    PYTHONS,
    REPORTS,
    CommandError,
    Environment,
    Records,
    clean_environment,
    interpreter,
    sha256,
    versions,
    write_table,
)

RECORDS = Records(REPORTS / "release_check.jsonl", ("python", "extra", "wheel"))
SMOKE = pathlib.Path(__file__).with_name("smoke.py")
# Only that pip finds a set of versions is checked: these extras are for working on the package.
RESOLVED = ("tpu", "notebooks", "docs", "dev")
NOT_THERE = "import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, sys.argv[1:])))"


def no_extra(environment: Environment) -> None:
    """Without TensorFlow and JAX the package says in one sentence what to install."""
    environment.run("-c", NOT_THERE, "tensorflow", "jax")
    try:
        environment.run("-c", "import tf_largebatch")
    except CommandError as error:
        if "tf_largebatch needs Keras on TensorFlow or JAX" not in str(error):
            raise
    else:
        raise CommandError("the package is imported without TensorFlow and JAX")


def works(environment: Environment, backend: str) -> None:
    """The wheel's CLARS trains, is saved and loaded; with the newest Python the README's command trains, too."""
    installed_at(environment, environment.run(SMOKE, backend=backend))
    if not environment.run("--version").startswith(f"Python {PYTHONS[-1]}."):
        return
    arguments = ("--epochs=1", "--output_dir=run", "--verbose=0")
    printed = environment.run("-m", "tf_largebatch.train", *arguments, backend=backend)
    if "test accuracy" not in printed:
        raise CommandError(f"tf_largebatch.train printed no test accuracy: {printed[-200:]}")


def tensorflow(environment: Environment) -> None:
    works(environment, "tensorflow")


def jax(environment: Environment) -> None:
    environment.run("-c", NOT_THERE, "tensorflow")
    works(environment, "jax")


def garden(environment: Environment) -> None:
    """CLARS trains in tf_keras and the experiments are registered."""
    installed_at(environment, environment.run(SMOKE.with_name("smoke_model_garden.py")))


def installed_at(environment: Environment, printed: str) -> None:
    """Checks that a smoke test used the installed package."""
    if str(environment.directory) not in printed:
        raise CommandError(f"the package that was tried is not the installed one: {printed}")


TRIALS = {"": no_extra, "tensorflow": tensorflow, "jax": jax, "garden": garden}


def installation(python: str, extra: str, wheel: pathlib.Path) -> dict[str, Any]:
    """Installs the wheel with an extra and tries it."""
    with clean_environment(python) as environment:
        try:
            environment.install(f"{wheel}[{extra}]" if extra else str(wheel))
        except CommandError as error:
            return {"result": "cannot be installed", "reason": str(error)}
        packages = environment.packages(extra)
        found = {"versions": versions(packages), "packages": packages}
        try:
            TRIALS[extra](environment)
        except CommandError as error:
            return {"result": "fails", "reason": str(error), **found}
    return {"result": "works", **found}


def resolution(python: str, extra: str, wheel: pathlib.Path) -> dict[str, Any]:
    """Whether pip finds versions for the wheel with an extra."""
    with clean_environment(python) as environment:
        try:
            environment.install("--dry-run", f"{wheel}[{extra}]")
        except CommandError as error:
            return {"result": "cannot be installed", "reason": str(error)}
    return {"result": "can be installed"}


def metadata(dist: pathlib.Path) -> dict[str, Any]:
    """What twine, which uploads packages, says of the two files."""
    with clean_environment(PYTHONS[-1]) as environment:
        environment.install("twine")
        environment.run("-m", "twine", "check", "--strict", *sorted(dist.resolve().iterdir()))
    return {"result": "passes"}


def table(records: list[dict[str, Any]]) -> str:
    """A row for each extra, a column for each Python."""
    lines = [f"| extra | {' | '.join(f'Python {python}' for python in PYTHONS)} |", "|---|" + "---|" * len(PYTHONS)]
    for extra in (*TRIALS, *RESOLVED):
        cells = []
        for python in PYTHONS:
            found = [r for r in records if (r["python"], r["extra"]) == (python, extra)]
            cells.append(cell(found[-1]) if found else "not run")
        lines.append(f"| {f'`{extra}`' if extra else 'none'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(record: dict[str, Any]) -> str:
    """A result, with the versions or the reason."""
    named = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items() if name != "numpy")
    if record["result"] == "works":
        return f"works: {named}"
    if "reason" in record:
        return f"{record['result']}: {record['reason']}".replace("|", "\\|")
    return record["result"]


def licence_table(records: list[dict[str, Any]]) -> str:
    """A row for each licence: what the package itself asks for, and what that brings, with the extras in brackets."""
    stated: dict[str, str] = {}
    extras: dict[str, set[str]] = {}
    direct: set[str] = set()
    for record in records:
        for name, package in record.get("packages", {}).items():
            stated[name] = package["licence"]  # where versions differ, that of the last
            extras.setdefault(name, set()).add(record["extra"])
            if package["direct"]:
                direct.add(name)
    lines = ["| licence | asked for by tf_largebatch | brought by those |", "|---|---|---|"]
    for licence in sorted(set(stated.values()), key=str.lower):
        names = sorted(name for name in stated if stated[name] == licence)
        marked = {name: name if "" in extras[name] else f"{name} ({', '.join(sorted(extras[name]))})" for name in names}
        asked = ", ".join(marked[name] for name in names if name in direct)
        brought = ", ".join(marked[name] for name in names if name not in direct)
        lines.append(f"| {licence} | {asked} | {brought} |")
    return "\n".join(lines)


def main(dist: pathlib.Path, *pythons: str) -> None:
    """Does all checks that the report does not have.

    Raises:
        SystemExit: If one of them fails. An extra that a Python cannot install is a result, not a failure.
    """
    (wheel,) = dist.resolve().glob("*.whl")
    key = {"wheel": sha256(wheel)}
    RECORDS.check(lambda: metadata(dist), python="", extra="twine check", **key)
    for extra in (*TRIALS, *RESOLVED):
        for python in pythons or PYTHONS:
            if interpreter(python) is None:
                print(f"python{python} is not on the path: not checked")
                continue
            check = installation if extra in TRIALS else resolution
            RECORDS.check(lambda c=check, p=python, e=extra: c(p, e, wheel), python=python, extra=extra, **key)
    records = [record for record in RECORDS.read() if record["wheel"] == key["wheel"]]
    write_table("release check", table(records))
    write_table("licences", licence_table(records))
    failures = [f"{r['python']} {r['extra']}: {r['reason']}" for r in records if r["result"] == "fails"]
    sys.exit("\n".join(failures) or None)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
