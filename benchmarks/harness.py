"""What the benchmark programs share: interleaved timing, spread, memory, processes, the environment and reports."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REPORTS = pathlib.Path(__file__).with_name("reports")


def seconds(program: Callable[[], Any]) -> float:
    """The wall time of one call, until everything that it returns is there."""
    import numpy as np
    import tensorflow as tf

    start = time.perf_counter()
    for result in tf.nest.flatten(program()):
        np.asarray(result)
    return time.perf_counter() - start


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Times programs in turns, so that what else the machine does meanwhile falls on all of them.

    Args:
        programs: The programs by name.
        rounds: How often each is timed.
        warm_up: Rounds before those, not kept: the first call traces.

    Returns:
        The seconds of every round, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(warm_up + rounds):
        for name, program in programs.items():
            elapsed = seconds(program)
            if number >= warm_up:
                times[name].append(elapsed)
    return times


def ratios(times: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """The ratio of each time to the baseline's of the same round."""
    return [t / b for t, b in zip(times, baseline, strict=True)]


def median_and_quartiles(name: str, values: Sequence[float]) -> dict[str, Any]:
    """`{name: median, name_quartiles: [first, third]}`, the form that the documentation's tables read."""
    if len(values) == 1:
        return {name: values[0], f"{name}_quartiles": [values[0], values[0]]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {name: middle, f"{name}_quartiles": [low, high]}


def peak_bytes() -> int:
    """The peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """The resident memory of this process now."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def in_a_process_of_its_own(module: str, *arguments: str) -> list[Any]:
    """Runs `python -m module arguments` and returns the JSON values of its output, one a line."""
    command = [sys.executable, "-m", module, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.strip().splitlines()]


def versions_and_machine() -> dict[str, Any]:
    """What a measurement depends on besides the code."""
    import keras
    import tensorflow as tf

    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "cpu": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
    }


def read_report(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The report of a file; empty if there is no such file."""
    if path and os.path.exists(path):
        return json.loads(pathlib.Path(path).read_text())
    return {}


def write_report(path: str | os.PathLike[str] | None, report: Mapping[str, Any]) -> None:
    """Writes a report, if there is a path to write it to."""
    if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(json.dumps(report, indent=1) + "\n")
