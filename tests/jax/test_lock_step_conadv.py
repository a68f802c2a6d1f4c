"""ConAdvModel on JAX against TensorFlow, step by step, from equal weights and images, with nothing random."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from lock_step_conadv_run import BATCH, CASES, STEPS, data, run
from selection import long_unless

RUN = Path(__file__).parent.parent / "lock_step_conadv_run.py"


QUICK = ("clars",)


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory):
    """What each backend's run of some cases left, by case, step and tensor; and where their models are."""
    return functools.cache(lambda *cases: run_both(tmp_path_factory.mktemp("lock_step"), cases))


@pytest.fixture
def runs(runs_of, case):
    return runs_of(*(QUICK if case in QUICK else [name for name in CASES if name not in QUICK]))


def run_both(directory, cases):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    environment["PYTHONPATH"] = os.pathsep.join([str(RUN.parent.parent), os.environ.get("PYTHONPATH", "")])
    other = subprocess.Popen([sys.executable, str(RUN), str(directory / "tensorflow"), *cases], env=environment)
    own: dict[str, np.ndarray] = {}
    for case in cases:
        run(case, own, directory / "jax")
    assert other.wait(600) == 0
    return dict(np.load(directory / "tensorflow.npz")), own, directory


@pytest.mark.parametrize("case", long_unless(CASES, QUICK))
def test_the_first_images_are_equal_but_where_the_gradient_is_zero_to_rounding(runs, case):
    (images, gradient), (others, _) = ([run[f"{case}:0:{name}"] for name in ("pgd", "gradient")] for run in runs[:2])
    clear = np.abs(gradient) > 1e-5 * np.abs(gradient).max(axis=(1, 2, 3), keepdims=True)
    assert clear.mean() > 0.9
    np.testing.assert_allclose(others[clear], images[clear], rtol=0, atol=1e-3)
    assert np.abs(images).max() > 0


@pytest.mark.parametrize("case", long_unless(CASES, QUICK))
def test_twenty_steps(runs, case):
    """The first step and tensor that differ are named."""
    first, second = ({tuple(k.split(":")): v for k, v in run.items() if k.startswith(f"{case}:")} for run in runs[:2])
    assert first.keys() == second.keys()
    for step in range(1, STEPS + 1):
        here = [key for key in first if key[1] == str(step)]
        assert len(here) > 10
        for key in here:
            where = f"step {step}, {key[2]}"
            if key[2] == "images":  # a sign may turn where the gradient is zero to rounding
                same = np.isclose(first[key], second[key], rtol=0, atol=1e-3)
                assert same.mean() > 0.99, where
            else:
                np.testing.assert_allclose(second[key], first[key], rtol=1e-3, atol=1e-3, err_msg=where)


def test_a_model_saved_on_tensorflow_goes_on_on_jax(runs_of):
    expected, _, directory = runs_of(*QUICK)
    x, y = data("clars")
    model = keras.models.load_model(directory / "tensorflow_clars.keras")
    model.fit(x[STEPS // 2 * BATCH :], y[STEPS // 2 * BATCH :], batch_size=BATCH, shuffle=False, verbose=0)
    names = [key.split(":")[2] for key in expected if key.startswith(f"clars:{STEPS}:")]
    found = [v for v in model.variables if "seed" not in v.path]
    for name, variable in zip(names, found, strict=False):
        np.testing.assert_allclose(variable, expected[f"clars:{STEPS}:{name}"], rtol=1e-3, atol=1e-3, err_msg=name)
    assert int(model.stale.step.value) == STEPS
