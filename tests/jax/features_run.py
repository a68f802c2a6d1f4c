"""Fifty steps with what Keras's optimizers offer beside the update, on the backend in use, and on from its half.

python tests/jax/features_run.py DIRECTORY GROUP

writes for each case of the group `CASE.BACKEND.npz` and, of those that go on, `CASE.BACKEND.keras` after half of the
steps. Where the directory holds the other backend's `.keras` file, it continues that one: `CASE.BACKEND.continued.npz`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

import tf_largebatch as lb

STEPS, BATCH, CLASSES, SHAPE = 50, 12, 3, (6, 6, 2)
# At these steps the loss, its gradients and their norms are no finite numbers.
OVERFLOWS = (11, 12, 30)


@dataclasses.dataclass(frozen=True)
class Case:
    """A run: the optimizer, whether in LargeBatchModel, arguments of both, the dtype policy."""

    optimizer: str
    wrapped: bool
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy: str = "float32"
    micro_batch_size: int | None = None

    @property
    def scales_loss(self) -> bool:
        return self.policy == "mixed_float16"

    @property
    def goes_on(self) -> bool:
        """Whether the other backend continues the run: of each feature one wrapped model and one plain one."""
        return self.wrapped == (self.optimizer == "CLARS")


# The sizes at which clipping changes some of the gradients: tensors' norms are 0.01 to 1 here.
FEATURES: dict[str, dict[str, Any]] = {
    "moving average": {"arguments": {"use_ema": True, "ema_momentum": 0.9}},
    "moving average, overwriting": {"arguments": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7}},
    "accumulation": {"arguments": {"gradient_accumulation_steps": 3}},
    "clipnorm": {"arguments": {"clipnorm": 0.1}},
    "global_clipnorm": {"arguments": {"global_clipnorm": 0.2}},
    "clipvalue": {"arguments": {"clipvalue": 0.02}},
    "loss scaling": {"policy": "mixed_float16"},
    "bfloat16": {"policy": "mixed_bfloat16"},
}
GROUPS: dict[str, dict[str, Case]] = {
    feature: {
        f"{optimizer}, {'wrapped' if wrapped else 'plain'}": Case(optimizer, wrapped, **settings)
        for optimizer in ("CLARS", "LARS")
        for wrapped in (True, False)
    }
    for feature, settings in FEATURES.items()
}
GROUPS["together"] = {
    "float32": Case(
        "CLARS",
        True,
        {"use_ema": True, "ema_momentum": 0.9, "gradient_accumulation_steps": 3, "global_clipnorm": 0.2},
    ),
    "float16": Case("CLARS", True, {"clipnorm": 0.1}, "mixed_float16", micro_batch_size=5),
}


def network() -> keras.Model:
    """A smooth network: a ReLU whose input is about 0 may turn a rounding into a jump."""
    inputs = keras.Input(SHAPE)
    t = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    t = layers.BatchNormalization(momentum=0.9, name="norm")(t)
    t = layers.Flatten(name="flat")(layers.Activation("tanh", name="tanh")(t))
    logits = layers.Dense(CLASSES, name="head")(t)
    net = keras.Model(inputs, layers.Activation("linear", dtype="float32", name="logits")(logits), name="net")
    rng = np.random.default_rng(1)
    for v in net.weights:
        scale = np.sqrt(np.prod(v.shape[:-1]))
        v.assign(rng.uniform(0.5, 1.5, v.shape) if "norm" in v.path else rng.normal(size=v.shape) / scale)
    return net


def compiled(case: Case) -> keras.Model:
    """The model of a case from the weights that all cases start from."""
    keras.utils.clear_session()
    keras.config.set_dtype_policy(case.policy)
    try:
        model = network()
        if case.wrapped:
            model = lb.LargeBatchModel(model, micro_batch_size=case.micro_batch_size)
        arguments = {"eta": 0.02, "weight_decay_rate": 1e-3, **case.arguments}
        if case.optimizer == "CLARS":
            arguments["gradient_norms"] = "per_example" if case.wrapped else "replica"
        optimizer = getattr(lb, case.optimizer)(0.5, **arguments)
        if case.scales_loss:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 128.0, dynamic_growth_steps=9)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, jit_compile=keras.backend.backend() == "jax")
        return model
    finally:
        keras.config.set_dtype_policy("float32")


def batches(case: Case) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images, labels and weights for each step."""
    rng = np.random.default_rng(2)
    means, found = rng.normal(size=(CLASSES, *SHAPE)), []
    for step in range(STEPS):
        y = rng.integers(0, CLASSES, BATCH)
        x = (means[y] + rng.normal(size=(BATCH, *SHAPE))).astype("float32")
        weights = rng.uniform(0.5, 1.5, BATCH).astype("float32")
        if case.scales_loss and step in OVERFLOWS:
            weights = np.full(BATCH, 1e35, "float32")
        found.append((x, y, weights))
    return found


def state(model: keras.Model) -> dict[str, keras.Variable]:
    """The variables that a step changes, by names that both backends give them."""
    named = {f"weight {v.path}": v for v in model.weights}
    return {**named, **{f"optimizer {i} {v.name}": v for i, v in enumerate(model.optimizer.variables)}}


def train(
    model: keras.Model,
    case: Case,
    first: int = 0,
    save_to: str | None = None,
    states: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Trains from a step on, and returns `{"step/tensor": value}` of weights, optimizer's variables, norms and rates.

    Args:
        model: Compiled.
        case: The case.
        first: The first step.
        save_to: The file that the model is saved to after half of the steps.
        states: What another run returned: each step after the first starts from that run's state.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    found: dict[str, np.ndarray] = {}
    for step, (x, y, weights) in enumerate(batches(case)):
        if step < first:
            continue
        if states is not None and step > first:
            for name, v in state(model).items():
                v.assign(states[f"{step - 1}/{name}"])
        model.reset_metrics()
        found[f"{step}/loss"] = np.asarray(model.train_on_batch(x, y, sample_weight=weights))
        if int(optimizer.iterations) > 0:  # gradients are accumulated before the first update
            found.update((f"{step}/norm {path}", np.asarray(s)) for path, s in optimizer.gradient_norms().items())
            found.update((f"{step}/rate {path}", np.asarray(r)) for path, r in optimizer.layerwise_rates().items())
        found.update((f"{step}/{name}", np.asarray(v)) for name, v in state(model).items())
        if save_to is not None and step == STEPS // 2 - 1:
            model.save(save_to)
    return found


def run(directory: str, group: str) -> None:
    """Runs the cases of a group; see the module."""
    here, there = ("jax", "tensorflow") if keras.backend.backend() == "jax" else ("tensorflow", "jax")
    for name, case in GROUPS[group].items():
        stem = os.path.join(directory, name)
        save_to = f"{stem}.{here}.keras" if case.goes_on else None
        np.savez(f"{stem}.{here}.npz", **train(compiled(case), case, save_to=save_to))
        if os.path.exists(f"{stem}.{there}.keras"):
            go_on(stem, case, here, there)


def go_on(stem: str, case: Case, here: str, there: str) -> None:
    """Continues from the file that the other backend saved."""
    keras.utils.clear_session()
    model = keras.models.load_model(f"{stem}.{there}.keras")
    np.savez(f"{stem}.{here}.continued.npz", **train(model, case, first=STEPS // 2))


if __name__ == "__main__":
    run(*sys.argv[1:])
