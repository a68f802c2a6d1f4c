"""What exact and sampled per-example norms cost a Keras training step on a GPU, with Keras on JAX.

    python -m benchmarks.gpu --json=benchmarks/reports/gpu.json             # eight minutes on an H100
    python -m benchmarks.gpu --json=... --cases=resnet50,update             # some cases
    python -m benchmarks.gpu --small                                        # on a CPU, to see that it runs
    python -m benchmarks.gpu --markdown --json=...                          # the tables of a report

Cases come in order of importance, and the report is written after each; cases that it holds are not repeated, and none
begins after `--seconds`. Every step is the one that `fit` runs: `train_step` of a Keras model with SGD and momentum
(plain), and that of LargeBatchModel with CLARS and the norms of all examples (exact) or of an eighth of them (sampled).
The programs of a case are compiled side by side and timed in turns, before the next case begins. Memory is what the
compiler reports: arguments, results and temporary arrays. TensorFlow is not needed; benchmarks.gpu_tensorflow times its
steps.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras

from benchmarks import harness
from benchmarks.gpu_cases import CASES, SMALL_CASES, Case
from benchmarks.gpu_table import markdown
from benchmarks.gpu_timing import environment, figures
from tf_largebatch.backend.jax.kernels import (
    convolution_direct,
    convolution_pallas,
    depthwise_direct,
    depthwise_pallas,
)
from tf_largebatch.norms.window import Window


def check_kernels() -> dict[str, float]:
    """The largest relative error of the Pallas kernels' norms and gradients against the direct forms', by layer."""
    errors = {}
    for pixels, channels, outputs, kernel, stride in ((32, 3, 16, 3, 1), (32, 16, 32, 3, 2), (14, 128, 64, 3, 1)):
        window = Window((kernel,) * 2, (stride,) * 2, "same", (1, 1))
        a = jax.random.normal(jax.random.key(2), (9, pixels, pixels, channels), jnp.bfloat16)
        d = jax.random.normal(jax.random.key(3), (9, pixels // stride, pixels // stride, outputs), jnp.bfloat16)
        forms = (convolution_pallas.norms_and_gradient, convolution_direct.norms_and_gradient)
        found, reference = (jax.jit(lambda a, d, form=form: form(a, d, window, 1))(a, d) for form in forms)  # noqa: B023
        errors[f"{channels} to {outputs}"] = _error(found, reference)
    found, reference = (
        jax.jit(lambda a, d, form=form: form.norms_and_gradient(a, d, window))(a[..., :80], a[..., :80])
        for form in (depthwise_pallas, depthwise_direct)
    )
    return {**errors, "depthwise": _error(found, reference)}


def _error(found: Sequence[jax.Array], reference: Sequence[jax.Array]) -> float:
    return max(float(abs(x - y).max() / abs(y).max()) for x, y in zip(found, reference, strict=True))


def measure(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Traces a case's programs, compiles them side by side and times them in turns; returns the row of the report."""
    lowered = {name: program.lower() for name, program in case.programs().items()}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = dict(zip(lowered, pool.map(lambda finish: finish(), lowered.values()), strict=True))
    return figures(compiled, case.baseline, rounds, steps)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file of the report; cases that it holds are not repeated")
    parser.add_argument("--cases", help=f"of {', '.join(CASES)}, separated by commas; default: all")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that everything runs")
    parser.add_argument("--rounds", type=int, default=11, help="rounds in which the programs take turns")
    parser.add_argument("--steps", type=int, default=4, help="steps of a program in a round")
    parser.add_argument("--seconds", type=float, default=480, help="no case begins after so many")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the report only")
    given = parser.parse_args(arguments)
    if keras.backend.backend() != "jax":
        sys.exit("benchmarks.gpu measures Keras on JAX: set KERAS_BACKEND=jax.")
    cases, start = SMALL_CASES if given.small else CASES, time.perf_counter()
    report: dict[str, Any] = harness.read_report(given.json) or {
        "environment": {**environment(), "keras": keras.__version__},
        "cases": {},
    }
    if given.markdown:
        print(markdown(report))
        return report
    if jax.default_backend() == "gpu" and "kernel_errors" not in report:
        report["kernel_errors"] = check_kernels()
        print(f"largest errors of the Pallas kernel: {report['kernel_errors']}", flush=True)
    for name in given.cases.split(",") if given.cases else cases:
        if name in report["cases"]:
            continue
        if time.perf_counter() - start > given.seconds:
            print(f"{name}: not begun, {given.seconds:.0f} seconds are over", flush=True)
            continue
        try:
            report["cases"][name] = measure(cases[name], given.rounds, given.steps)
        except Exception as error:  # the cases behind it still run
            print(f"{name}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
            continue
        print(f"{time.perf_counter() - start:.0f} s, {name}: {report['cases'][name]}", flush=True)
        harness.write_report(given.json, report)
        jax.clear_caches()
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
