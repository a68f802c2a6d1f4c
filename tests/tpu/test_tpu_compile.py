"""The steps compile for a TPU: with the TPU's own compiler, for four chips of a v5e, none of which is there.

No backend: processes of their own compile the steps of both backends.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from selection import long_unless

from benchmarks import tpu_compiler

# The compiler is no dependency; -ra prints the reason.
pytestmark = pytest.mark.skipif(
    tpu_compiler.why_unavailable() is not None, reason=f"no TPU compiler: {tpu_compiler.why_unavailable()}"
)

STEPS = ("plain", "clars", "clars_sampled", "conadv_clars_micro_batches")
QUICK = STEPS[:2]
HBM_BYTES = 16 * 2**30


@functools.cache
def compiled(*names, program="small_steps.py", backend="tensorflow"):
    """Reports of these steps, from one process."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(Path(__file__).with_name(program)), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report["name"]: report for report in reports}


def report_of(name):
    return compiled(*(QUICK if name in QUICK else STEPS[2:]))[name]


@pytest.mark.parametrize("name", long_unless(STEPS, QUICK))
def test_compiles_for_a_tpu_with_static_shapes_and_no_host(name):
    report = report_of(name)
    assert report["device_kind"].startswith("TPU")
    assert report["dynamic_shapes"] == []
    assert report["host_calls"] == []
    assert 0 < report["peak_bytes"] < HBM_BYTES


@pytest.mark.parametrize("name", long_unless(STEPS[1:], QUICK[1:]))
def test_norms_travel_with_the_gradients(name):
    """As many all-reduces as without norms, one of which holds the packed norms beside gradients."""
    report = report_of(name)
    reduced = [line for line in report["collectives"] if re.search(r" all-reduce(-start)?\(", line)]
    assert len(reduced) == len(report_of("plain")["collectives"]) == len(report["collectives"])
    assert (
        report["trained_tensors"] >= 18
    )  # five kernels and biases, four gammas and betas; ConAdv's auxiliary batch norms
    # The results stand before the operation's name.
    results = [re.split(r" all-reduce(?:-start)?\(", line)[0] for line in reduced]
    packed = f"f32[{report['trained_tensors']}]"
    (holding,) = [r for r in results if packed in r]
    assert "f32[3,3,160,160]" in holding


@pytest.mark.long
def test_norms_travel_with_the_gradients_of_jax():
    """By keras.distribution's layout: one all-reduce holds the norms beside gradients, and no examples are gathered.

    The counts were 18 with norms and 17 without. The one more is no norms': without them a sum of a batch normalization
    travels with the metrics.
    """
    steps = compiled("plain", "clars", program="small_jax_steps.py", backend="jax")
    plain, clars = (steps[name]["collectives"] for name in ("plain", "clars"))
    assert all(re.search(r" all-reduce(-start)?\(", line) for line in (*plain, *clars))
    assert len(clars) <= len(plain) + 1
    results = [re.split(r" all-reduce(?:-start)?\(", line)[0] for line in clars]
    (holding,) = [result for result in results if f"f32[{steps['clars']['tensors']}]" in result]
    assert "f32[3,160,160]" in holding  # of the last convolution
