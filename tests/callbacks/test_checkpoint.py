"""Checkpoints restore the whole state, refuse another model, and are told from damaged files."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from small_fits import fit, small_model

from tf_largebatch.callbacks import load_checkpoint, save_checkpoint
from tf_largebatch.callbacks.checkpoint import DamagedCheckpoint


def test_a_checkpoint_restores_weights_momentum_step_and_random_state(tmp_path):
    model = fit(small_model(keras.optimizers.SGD(0.1, momentum=0.9)))
    save_checkpoint(tmp_path / "c.npz", model, 2)
    other = small_model(keras.optimizers.SGD(0.1, momentum=0.9))
    assert load_checkpoint(tmp_path / "c.npz", other) == 2
    for a, b in zip([*fit(model).variables, *model.optimizer.variables],
                    [*fit(other).variables, *other.optimizer.variables], strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.npz", small_model("sgd"), 0)
    with pytest.raises(ValueError, match="must hold the variables of"):
        load_checkpoint(tmp_path / "c.npz", small_model("sgd", units=5))
    with pytest.raises(ValueError, match="must hold the variables of"):
        load_checkpoint(tmp_path / "c.npz", small_model("adam"))


def test_bfloat16_weights_survive_a_checkpoint(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    model = fit(small_model(keras.optimizers.SGD(0.1)))
    save_checkpoint(tmp_path / "c.npz", model, 1)
    other = small_model(keras.optimizers.SGD(0.1))
    load_checkpoint(tmp_path / "c.npz", other)
    np.testing.assert_array_equal(
        keras.ops.cast(model.variables[-1], "float32"), keras.ops.cast(other.variables[-1], "float32")
    )


@pytest.mark.parametrize("damage", ["cut short", "a byte changed", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_changes_nothing(damage, tmp_path):
    path = tmp_path / "c.npz"
    save_checkpoint(path, fit(small_model("sgd")), 1)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    half = content[:middle]
    path.write_bytes({"cut short": half, "a byte changed": content, "empty": b"", "text": b"not a checkpoint"}[damage])
    model = small_model("sgd")
    before = [np.asarray(v) for v in model.variables]
    with pytest.raises(DamagedCheckpoint, match=r"c\.npz is damaged: remove it"):
        load_checkpoint(path, model)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)
