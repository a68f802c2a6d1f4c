"""The steps compile for a TPU: with the TPU's own compiler, for four chips of a v5e, none of which is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tpu_compiler

# The compiler is no dependency; -ra prints the reason.
pytestmark = pytest.mark.skipif(
    tpu_compiler.why_unavailable() is not None, reason=f"no TPU compiler: {tpu_compiler.why_unavailable()}"
)

STEPS = ("plain", "clars", "clars_sampled", "conadv_clars_micro_batches")
HBM_BYTES = 16 * 2**30


@pytest.fixture(scope="module")
def steps():
    program = Path(__file__).with_name("small_steps.py")
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, str(program), *STEPS], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report["name"]: report for report in reports}


@pytest.mark.parametrize("name", STEPS)
def test_compiles_for_a_tpu_with_static_shapes_and_no_host(steps, name):
    report = steps[name]
    assert report["device_kind"].startswith("TPU")
    assert report["dynamic_shapes"] == []
    assert report["host_calls"] == []
    assert 0 < report["peak_bytes"] < HBM_BYTES


@pytest.mark.parametrize("name", STEPS[1:])
def test_norms_travel_with_the_gradients(steps, name):
    """As many all-reduces as without norms, one of which holds the packed norms beside gradients."""
    reduced = [line for line in steps[name]["collectives"] if re.search(r" all-reduce(-start)?\(", line)]
    assert len(reduced) == len(steps["plain"]["collectives"]) == len(steps[name]["collectives"])
    assert steps[name]["trained_tensors"] >= 18  # five kernels and biases, four gammas and betas; ConAdv's twins
    # The results stand before the operation's name.
    results = [re.split(r" all-reduce(?:-start)?\(", line)[0] for line in reduced]
    packed = f"f32[{steps[name]['trained_tensors']}]"
    (holding,) = [r for r in results if packed in r]
    assert "f32[3,3,160,160]" in holding
