"""Keras's own tests with this package's classes in place; those that cannot hold are listed with the reason."""

from __future__ import annotations

import keras_own_tests
import pytest
from comparing import ON_JAX
from keras_own_tests import run_all

DECAY = "asks for weight_decay, decay beside the gradient: refused, since weight_decay_rate is part of the gradient"
DENSE = "expects a sparse update: the norm of a tensor needs its whole gradient, so sparse gradients are made dense"
# test -> why it cannot hold.
CANNOT_HOLD = {
    "optimizers.optimizer_test": {"test_gradient_accumulation_with_weigth_decay1": DECAY},
    "optimizers.sgd_test": {
        "test_config": DECAY,
        "test_weight_decay": DECAY,
        "test_correctness_with_golden": "asks for nesterov without momentum: refused, since it would change nothing",
        "test_invalid_momentum": "expects the words of SGD's message; ours are others",
        "test_single_step": "expects two variables; rates and norms are kept in three more",
    },
    "optimizers.optimizer_sparse_test": {
        "test_sparse_gradients_sgd": DENSE,
        "test_sparse_gradients_loss_scale_optimizer_sgd": DENSE,
    },
    "optimizers.loss_scale_optimizer_test": {"test_config": DECAY},
    "optimizers.multi_optimizer_test": {},
}
CASES = [
    pytest.param(module, optimizer, marks=() if quick else pytest.mark.long)
    for module in keras_own_tests.OPTIMIZER_TESTS
    for optimizer in ("CLARS", "LARS")
    for quick in [optimizer == "CLARS" and not ON_JAX and "sparse" not in module]
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module, optimizer", CASES)
def test_of_optimizers(module, optimizer):
    found = run_all(module, optimizer)
    failed = {name: text for name, text in found.items() if text is not None and not text.startswith("skipped")}
    assert set(failed) == set(CANNOT_HOLD[module]), "\n\n".join(f"{name}: {text}" for name, text in failed.items())
    assert len(found) - len(failed) > (1 if "sgd_test" in module else 5)
