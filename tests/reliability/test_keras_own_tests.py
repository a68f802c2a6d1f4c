"""Keras's own tests with this package's classes in place; those that cannot hold are listed with the reason."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras_own_tests
import pytest
from comparing import ON_JAX, tensorflow_only
from keras_own_tests import DISTRIBUTE_TESTS, TRAINED_WRAPPED, TRAINER_TESTS, run_all

DECAY = "asks for weight_decay, decay beside the gradient: refused, since weight_decay_rate is part of the gradient"
DENSE = "expects a sparse update: the norm of a tensor needs its whole gradient, so sparse gradients are made dense"
NESTEROV = "asks for nesterov without momentum: refused, since it would change nothing"
# test -> why it cannot hold.
CANNOT_HOLD = {
    "optimizers.optimizer_test": {"test_gradient_accumulation_with_weigth_decay1": DECAY},
    "optimizers.sgd_test": {
        "test_config": DECAY,
        "test_weight_decay": DECAY,
        "test_correctness_with_golden": NESTEROV,
        "test_invalid_momentum": "expects the words of SGD's message; ours are others",
        "test_single_step": "expects two variables; rates and norms are kept in three more",
    },
    "optimizers.optimizer_sparse_test": {
        "test_sparse_gradients_sgd": DENSE,
        "test_sparse_gradients_loss_scale_optimizer_sgd": DENSE,
    },
    "optimizers.loss_scale_optimizer_test": {"test_config": DECAY},
    "optimizers.multi_optimizer_test": {},
    DISTRIBUTE_TESTS: {
        "test_config": DECAY,
        "test_weight_decay": DECAY,
        "test_correctness_with_golden": NESTEROV,
        "test_ema": "gives both replicas one constant as gradient, which tf.distribute does not add up and ours do",
    },
}
if importlib.util.find_spec("keras.src.optimizers.sgd_test") is None:  # Keras 3.12
    pytest.skip("this Keras's wheel holds no tests", allow_module_level=True)
CASES = [
    pytest.param(module, optimizer, marks=() if quick else pytest.mark.long)
    for module in keras_own_tests.OPTIMIZER_TESTS
    for optimizer in ("CLARS", "LARS")
    for quick in [optimizer == "CLARS" and not ON_JAX and "sparse" not in module]
]


def assert_only_those_fail(module, found):
    """Asserts that the tests that cannot hold fail and no others; returns how many pass."""
    failed = {name: text for name, text in found.items() if text is not None and not text.startswith("skipped")}
    texts = "\n\n".join(f"{name}: {text}" for name, text in failed.items())
    assert set(failed) == set(CANNOT_HOLD.get(module, ())), texts
    return sum(text is None for text in found.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module, optimizer", CASES)
def test_of_optimizers(module, optimizer):
    assert assert_only_those_fail(module, run_all(module, optimizer)) > (1 if "sgd_test" in module else 5)


@pytest.mark.long
@tensorflow_only
@pytest.mark.parametrize("optimizer", ["CLARS", "LARS"])
def test_of_optimizers_under_tf_distribute(optimizer):
    command = [sys.executable, keras_own_tests.__file__, optimizer, DISTRIBUTE_TESTS]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert assert_only_those_fail(DISTRIBUTE_TESTS, json.loads(done.stdout.splitlines()[-1])["results"]) > 4


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_of_the_trainer():
    TRAINED_WRAPPED.clear()
    assert assert_only_those_fail(TRAINER_TESTS, run_all(TRAINER_TESTS, "CLARS")) > 150
    assert len(TRAINED_WRAPPED) > 80
