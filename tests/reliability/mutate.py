"""Mutation testing: puts small faults into modules, one at a time, and sees whether the tests that mirror them fail.

python tests/reliability/mutate.py core update rules --mutants=300
python tests/reliability/mutate.py update_jax --mutants=300
python tests/reliability/mutate.py --report

The faults are those of `mutations.py`. Of each group the first command draws some at random, in an order that the seed
fixes, and appends a line for each to `mutants.jsonl`. Faults with a line are not tried again, so that the command goes
on where it was interrupted; `--survivors` tries those again that no test noticed. The last command writes the table
of docs/reliability.md.

Each fault is tried in a process of its own, forked from one that has imported TensorFlow or JAX, but not this package.
The tests that execute the changed lines run, the quickest first, and the first failure ends the process. The other
tests run, too, where no test executes these lines, as at the top of a module, and with `--survivors`: what a fixture
shares may come from lines that only the first test executed. A process that uses more than `--patience` times the
processor time of all its tests counts as a failure, too: its fault loops for ever.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import mutations
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = pathlib.Path(__file__).with_name("mutants.jsonl")
REASONS = pathlib.Path(__file__).with_name("surviving_mutants.json")
# What the package and its tests import of others.
PRELOADED = ("numpy", "scipy.stats", "keras", "matplotlib.pyplot", "sklearn.datasets", "PIL.Image")
STATUSES = {
    pytest.ExitCode.OK: "survived",
    pytest.ExitCode.TESTS_FAILED: "killed",
    pytest.ExitCode.INTERRUPTED: "killed",
}

_UPDATE = tuple(
    f"tests/optimizers/test_{name}.py"
    for name in ("update", "update_kernels", "reductions", "reference_agreement", "optimizer_base")
)
# On JAX XLA compiles the ordinary operations of core.
_UPDATE_ON_JAX = (
    *(name for name in _UPDATE if "kernels" not in name),
    *(f"tests/core/test_{name}.py" for name in ("momentum", "rates")),
)
_EAGER = "not (fit or compiled or embedding or zero_head)"
# For each group its modules, and for each module the arguments of pytest.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "core": {
        **{
            f"tf_largebatch/core/{path.stem.removeprefix('test_')}.py": (f"tests/core/{path.name}",)
            for path in sorted((ROOT / "tests" / "core").glob("test_*.py"))
        },
        "tf_largebatch/core/defaults.py": ("tests/optimizers/test_defaults.py",),
    },
    # Without the tests that compile a step, which take most of the time: a fault that only they notice is counted as
    # unnoticed.
    "update": {
        "tf_largebatch/optimizers/update.py": (*_UPDATE, "-k", _EAGER),
        "tf_largebatch/backend/tensorflow/update_kernels.py": (*_UPDATE, "-k", _EAGER),
    },
    "update_jax": {
        module: (*_UPDATE_ON_JAX, "-k", _EAGER)
        for module in (
            "tf_largebatch/optimizers/update.py",
            "tf_largebatch/backend/jax/update_kernels.py",
            "tf_largebatch/core/momentum.py",
            "tf_largebatch/core/rates.py",
        )
    },
    # The tests of each rule by itself, in eager execution, and of its contractions.
    "rules": {
        "tf_largebatch/norms/rules/convolution.py": (
            "tests/norms/rules/test_convolution.py",
            "tests/norms/test_contractions.py",
            "-k",
            "test_convolution or [conv or [depthwise",
        ),
        "tf_largebatch/norms/rules/einsum.py": (
            "tests/norms/rules/test_einsum.py",
            "tests/norms/test_contractions.py",
            "-k",
            "test_einsum or [einsum or [rows or first",
        ),
        "tf_largebatch/norms/rules/normalization.py": ("tests/norms/rules/test_normalization.py",),
    },
}

ON_JAX = frozenset({"update_jax"})


class Faulty(importlib.abc.MetaPathFinder):
    """Imports one module of the package with a fault in it."""

    def __init__(self, mutant: mutations.Mutant) -> None:
        self.name = mutant.module.removesuffix(".py").replace("/", ".")
        self.path = str(ROOT / mutant.module)
        self.code = compile(mutations.apply(mutant, pathlib.Path(self.path).read_text()), self.path, "exec")

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        loader = importlib.machinery.SourceFileLoader(name, self.path)
        loader.get_code = lambda _: self.code
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


class Lines:
    """A plugin of pytest that notes for each test its time and which lines of some modules it executes."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.files = {str(ROOT / module): module for module in modules}
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, list[tuple[str, int]]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        seen: set[tuple[str, int]] = set()

        def trace(frame: Any, event: str, argument: Any) -> Callable | None:
            module = self.files.get(frame.f_code.co_filename)
            if module is None:
                return None
            seen.add((module, frame.f_lineno))
            return trace

        threading.settrace(trace)
        sys.settrace(trace)
        begun = time.process_time()
        yield
        sys.settrace(None)
        threading.settrace(None)
        self.seconds[item.nodeid] = time.process_time() - begun
        self.lines[item.nodeid] = sorted(seen)


class Ordered:
    """A plugin of pytest that runs first what executes the changed lines, and the quickest of it first.

    Args:
        likely: The tests that execute the changed lines.
        seconds: The processor time of each test.
        others: Whether the other tests run after them.
    """

    def __init__(self, likely: set[str], seconds: dict[str, float], others: bool) -> None:
        self.likely, self.seconds, self.others = likely, seconds, others
        self.failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if not self.others:
            items[:] = [item for item in items if item.nodeid in self.likely]
        items.sort(key=lambda item: (item.nodeid not in self.likely, self.seconds.get(item.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def run_tests(arguments: Iterable[str], *plugins: Any) -> int:
    """Runs pytest here, without a word."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        return pytest.main([*arguments, "-p", "no:cacheprovider", "--no-header", "--tb=no"], plugins=plugins)


def forked(work: Callable[[], Any], processor_seconds: int | None = None) -> Any:
    """Has a process of its own do some work.

    Args:
        work: Returns what JSON can hold.
        processor_seconds: How long the process may compute, None for as long as it takes.

    Returns:
        What `work` returned; None if the process was ended by a signal.
    """
    with tempfile.NamedTemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if processor_seconds is not None:
                    resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds))
                pathlib.Path(answer.name).write_text(json.dumps(work()))
                status = 0
            finally:
                os._exit(status)
        try:
            status = os.waitpid(child, 0)[1]
        except KeyboardInterrupt:
            os.kill(child, signal.SIGKILL)
            raise
        if os.WIFSIGNALED(status):
            return None
        return json.loads(pathlib.Path(answer.name).read_text())


@dataclasses.dataclass
class Baseline:
    """What the tests of a module do without a fault.

    Attributes:
        seconds: Processor time of each test.
        tests: The tests that execute each line, with the lines' module.
        total: Processor time of all, imports included.
    """

    seconds: dict[str, float]
    tests: dict[tuple[str, int], set[str]]
    total: float


def baseline(modules: list[str], arguments: tuple[str, ...]) -> Baseline:
    """Runs the tests that several modules share, without a fault.

    Raises:
        RuntimeError: If they do not pass.
    """

    def work() -> Any:
        begun, plugin = time.process_time(), Lines(modules)
        status = run_tests(arguments, plugin)
        return status, plugin.seconds, plugin.lines, time.process_time() - begun

    status, seconds, lines, total = forked(work)
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest {' '.join(arguments)} must pass before faults are put in; it ends with {status}.")
    tests = defaultdict(set)
    for test, executed in lines.items():
        for module, line in executed:
            tests[module, line].add(test)
    return Baseline(seconds, tests, total)


def tried(
    mutant: mutations.Mutant, arguments: tuple[str, ...], without: Baseline, patience: float, others: bool
) -> dict[str, Any]:
    """Runs the tests on the module with the fault.

    Args:
        mutant: The fault.
        arguments: Those of pytest that choose the tests.
        without: What the tests do without the fault.
        patience: After so many times the tests' time the process ends.
        others: Whether tests that do not execute the changed lines run, too.

    Returns:
        Their outcome, the test that failed, how many execute the changed lines, and the processor time.
    """
    first, last = mutant.lines
    likely = set().union(*(without.tests[mutant.module, line] for line in range(first, last + 1)))

    def work() -> Any:
        begun, plugin = time.process_time(), Ordered(likely, without.seconds, others or not likely)
        sys.meta_path.insert(0, Faulty(mutant))
        status = run_tests([*arguments, "-x"], plugin)
        return status, plugin.failed, round(time.process_time() - begun, 1)

    found = forked(work, round(patience * without.total) + 10)
    status, failed, seconds = found or (None, "", None)
    outcome = STATUSES.get(status, "broken") if found else "timeout or crash"
    if outcome == "killed" and not failed:
        failed = "collection"
    return {"outcome": outcome, "test": failed, "executed by": len(likely), "seconds": seconds}


@functools.cache
def possible(group: str) -> list[mutations.Mutant]:
    """All faults of a group."""
    return [m for module in GROUPS[group] for m in mutations.mutants(module, (ROOT / module).read_text())]


def name_of(group: str, mutant: mutations.Mutant) -> str:
    """What a fault is called in the results: one module is tried on both backends."""
    return f"{mutant.key} on JAX" if group in ON_JAX else mutant.key


def drawn(group: str, number: int, seed: int) -> list[mutations.Mutant]:
    """The faults of a group that are tried, in their order."""
    return sorted(possible(group), key=lambda mutant: mutant.rank(seed))[:number]


def results() -> dict[str, dict[str, Any]]:
    """The last line of each fault."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {line["mutant"]: line for line in map(json.loads, lines)}


def run(group: str, number: int, seed: int, again: bool, patience: float) -> None:
    """Tries the drawn faults of a group that have no result yet, or again those that survived."""
    known = results()
    of_interest = {key for key, line in known.items() if line["outcome"] == "survived"} if again else set()
    drawn_here = drawn(group, number, seed)
    todo = [m for m in drawn_here if name_of(group, m) not in known or name_of(group, m) in of_interest]
    if again:
        todo = [mutant for mutant in todo if name_of(group, mutant) in of_interest]
    sharing = defaultdict(list)
    for module, arguments in GROUPS[group].items():
        if any(mutant.module == module for mutant in todo):
            sharing[arguments].append(module)
    without = {module: baseline(modules, arguments) for arguments, modules in sharing.items() for module in modules}
    for i, mutant in enumerate(todo):
        line = {"group": group, "mutant": name_of(group, mutant), "kind": mutant.kind}
        line |= tried(mutant, GROUPS[group][mutant.module], without[mutant.module], patience, again)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{i + 1} of {len(todo)}: {line['outcome']:8} {line['seconds']} s  {mutant.key}  {line['test']}", flush=True
        )


def report(number: int, seed: int) -> str:
    """The counts of each group, and the faults that no test noticed with the reason why that may be."""
    known = results()
    reasons = json.loads(REASONS.read_text()) if REASONS.exists() else {}
    lines = ["| faults in | possible | drawn | tried | noticed | unnoticed | noticed, of those that change a result |"]
    lines.append("|---|---|---|---|---|---|---|")
    unnoticed = []
    for group in GROUPS:
        names = [name_of(group, mutant) for mutant in drawn(group, number, seed)]
        mine = [name for name in names if name in known]
        survivors = [name for name in mine if known[name]["outcome"] == "survived"]
        noticed = len(mine) - len(survivors)
        equal = sum(reasons.get(name, "").startswith("Equivalent") for name in survivors)
        share = [f"{100 * noticed / max(of, 1):.1f} %" for of in (len(mine), len(mine) - equal)]
        cells = [len(possible(group)), len(names), len(mine), f"{noticed} ({share[0]})", len(survivors), share[1]]
        lines.append(f"| {group} | {' | '.join(map(str, cells))} |")
        unnoticed += [f"| `{name.replace('|', chr(92) + '|')}` | {reasons.get(name, '')} |" for name in survivors]
    return "\n".join([*lines, "", "| unnoticed | because |", "|---|---|", *unnoticed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help=f"which modules: {', '.join(GROUPS)}")
    parser.add_argument("--mutants", type=int, default=300, help="how many faults of each group are tried")
    parser.add_argument("--seed", type=int, default=0, help="fixes which faults are drawn, and their order")
    parser.add_argument("--survivors", action="store_true", help="tries again those that no test noticed")
    parser.add_argument("--patience", type=float, default=3.0, help="a fault loops after so many times the tests' time")
    parser.add_argument("--report", action="store_true", help="writes the table of docs/reliability.md")
    options = parser.parse_args()
    for group in options.groups:
        if group not in GROUPS:
            parser.error(f"groups must be of {', '.join(GROUPS)}; received {group!r}.")
    if ON_JAX & set(options.groups) and not ON_JAX >= set(options.groups):
        parser.error(f"groups must be of one backend; received {' '.join(options.groups)}.")
    backend = "jax" if ON_JAX & set(options.groups) else "tensorflow"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if options.groups:
        os.chdir(ROOT)
        os.environ.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3", JAX_PLATFORMS="cpu")
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        for name in (backend, *PRELOADED):
            importlib.import_module(name)
        run_tests(["--version", "--noconftest"])  # imports the rest of pytest
        # pytest collects garbage when it ends, which takes half a second with all objects of TensorFlow.
        gc.freeze()
        for group in options.groups:
            run(group, options.mutants, options.seed, options.survivors, options.patience)
    if options.report:
        import backend_table

        table = report(options.mutants, options.seed)
        PAGE.write_text(backend_table.filled(PAGE.read_text(), {"mutants": table}))
    print(report(options.mutants, options.seed).split("\n\n")[0])
    print(datetime.date.today())


if __name__ == "__main__":
    main()
