"""The same seed gives the same weights, bit for bit, twice in one process and in two processes, on the CPU."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import determinism_run
import pytest
from comparing import ON_JAX
from selection import long_unless

ROOT = pathlib.Path(__file__).parents[2]
# On JAX every step is compiled; there the cases run in `make test-long`.
QUICK = () if ON_JAX else ("sampled norms", "ConAdv")


@pytest.mark.parametrize("case", long_unless(determinism_run.CASES, QUICK))
def test_twice_in_one_process(case):
    # Eagerly and shorter in `make test`: tracing takes longer than the steps.
    less = {"run_eagerly": True, "epochs": 1} if case in QUICK else {}
    first = determinism_run.trained(case, **less)
    assert determinism_run.trained(case, **less) == first
    if case != "ConAdv":
        assert determinism_run.trained(case, seed=1, **less) != first


@pytest.mark.long
def test_in_two_processes():
    def run():
        command = [sys.executable, determinism_run.__file__]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    first = run()
    assert list(first) == list(determinism_run.CASES)
    assert run() == first
