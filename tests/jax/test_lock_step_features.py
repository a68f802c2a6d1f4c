"""JAX only: what Keras's optimizers offer beside the update, in lock step with TensorFlow, saved and gone on with.

Moving averages of weights, accumulated and clipped gradients, loss scaling and both mixed precisions, each with CLARS
and LARS, in LargeBatchModel and without it. In `make test`, test_lock_step_optimizers.py has one case of each.
"""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys

import features_run
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Of a tensor's largest entry, after fifty steps. Float32: sums in another order. In half precision the backends round
# other intermediate values, and training goes on from what differs: a few tens of roundings of 2^-11 and 2^-8.
FIFTY_STEPS = {"float32": 1e-4, "mixed_float16": 2e-2, "mixed_bfloat16": 1.5e-1}
# After one step from one state: a few roundings.
ONE_STEP = {"mixed_float16": 4e-3, "mixed_bfloat16": 3e-2}


def first_difference(found, expected, tolerance):
    """The first step and tensor of two runs that differ by more than this share of the largest entry, in words."""
    assert found and set(found) <= set(expected)
    for name, value in found.items():
        where, finite = f"step {name.replace('/', ', ', 1)}", np.isfinite(expected[name])
        if not np.array_equal(np.isfinite(value), finite):
            return f"{where}: {value} is not {expected[name]}"
        if finite.any():
            size = max(np.max(np.abs(expected[name][finite])), 1e-6)
            difference = np.max(np.abs(np.where(finite, value, 0.0) - np.where(finite, expected[name], 0.0))) / size
            if not difference < tolerance:
                return f"{where}: by {difference:.1e} of the largest entry"
    return None


def read_run(stem, run):
    return dict(np.load(f"{stem}.{run}.npz"))


@pytest.mark.long
@pytest.mark.parametrize("group", features_run.GROUPS)
def test_fifty_steps_and_going_on_on_the_other_backend(group, tmp_path):
    features_run.run(str(tmp_path), group)
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, features_run.__file__, str(tmp_path), group]
    subprocess.run(command, env=environment, check=True, cwd=ROOT)
    differences = []
    for name, case in features_run.GROUPS[group].items():
        stem = str(tmp_path / name)
        read = functools.partial(read_run, stem)
        jax, tensorflow = read("jax"), read("tensorflow")
        assert list(jax) == list(tensorflow)
        tolerance = FIFTY_STEPS[case.policy]
        found = [("JAX against TensorFlow", first_difference(jax, tensorflow, tolerance))]
        if case.goes_on:
            features_run.go_on(stem, case, "jax", "tensorflow")
            on_jax, on_tensorflow = read("jax.continued"), read("tensorflow.continued")
            found += [
                ("saved on JAX, continued on TensorFlow", first_difference(on_tensorflow, jax, tolerance)),
                ("saved on TensorFlow, continued on JAX", first_difference(on_jax, tensorflow, tolerance)),
            ]
        if case.policy in ONE_STEP:
            again = features_run.train(features_run.compiled(case), case, states=tensorflow)
            of_one_step = first_difference(again, tensorflow, ONE_STEP[case.policy])
            found.append(("each step from TensorFlow's state", of_one_step))
        differences += [f"{group}, {name}, {what}: {text}" for what, text in found if text is not None]
        assert not np.array_equal(jax["49/weight head/kernel"], jax["0/weight head/kernel"])
        if case.scales_loss:  # three steps were skipped, the scale halved and doubled
            scales = [float(value) for key, value in jax.items() if key.endswith("dynamic_scale")]
            assert scales[0] == 128.0 and min(scales) < 128.0 < max(scales)
            assert [value for key, value in jax.items() if key.startswith("49/") and "iteration" in key][-1] == 47
    assert not differences, "\n".join(differences)


def test_the_first_difference_is_named():
    expected = {"0/a": np.array([1.0, np.inf]), "1/a": np.array([2.0, 4.0]), "1/b": np.array(3.0)}
    assert first_difference({**expected}, expected, 1e-6) is None
    moved = {**expected, "1/a": np.array([2.0, 4.1]), "1/b": np.array(4.0)}
    assert first_difference(moved, expected, 1e-2).startswith("step 1, a: by 2.5e-02")
    overflown = {**expected, "1/b": np.array(np.nan)}
    assert first_difference(overflown, expected, 1e-2).startswith("step 1, b: nan is not 3.0")
