"""Fifty steps of CLARS from given weights on given data, on the backend in use; every step's state goes into a file.

python tests/jax/training_run.py FILE.npz MICRO_BATCH_SIZE NORM_EXAMPLES ACTIVATION DTYPE, the numbers 0 for none
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import layers

import tf_largebatch as lb

STEPS = 50
BATCH = 24


def network(activation):
    inputs = keras.Input((8, 8, 3))
    t = inputs
    for number, (channels, stride) in enumerate(((6, 1), (8, 2))):
        t = layers.Conv2D(channels, 3, stride, "same", use_bias=False, name=f"conv_{number}")(t)
        t = layers.BatchNormalization(momentum=0.9, name=f"norm_{number}")(t)
        t = layers.Activation(activation, name=f"{activation}_{number}")(t)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D(name="pool")(t)), name="net")


def run(
    micro_batch_size: int | None = None, norm_examples: int | None = None, activation: str = "gelu"
) -> dict[str, np.ndarray]:
    """Returns `{"step/path": value}` of every weight, norm and layer-wise rate, and of the loss."""
    rng = np.random.default_rng(0)
    net = network(activation)
    for v in net.weights:
        normal, is_norm = rng.normal(size=v.shape) / np.sqrt(np.prod(v.shape[:-1])), "norm" in v.path
        v.assign(rng.uniform(0.5, 1.5, v.shape) if is_norm else normal)
    means = rng.normal(size=(4, 8, 8, 3))
    model = lb.LargeBatchModel(net, norm_examples=norm_examples, micro_batch_size=micro_batch_size)
    optimizer = lb.CLARS(
        0.5, eta=0.02, weight_decay_rate=1e-3, gradient_norms="per_example", max_rate=None, unadapted_rate_factor=1.0
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found: dict[str, np.ndarray] = {}
    for step in range(STEPS):
        y = rng.integers(0, 4, BATCH)
        x = (means[y] + rng.normal(size=(BATCH, 8, 8, 3))).astype(keras.config.floatx())
        found[f"{step}/loss"] = np.asarray(model.train_on_batch(x, y))
        found.update((f"{step}/weight {v.path}", w) for v, w in zip(net.weights, net.get_weights(), strict=True))
        found.update((f"{step}/norm {path}", np.asarray(s)) for path, s in optimizer.gradient_norms().items())
        found.update((f"{step}/rate {path}", np.asarray(r)) for path, r in optimizer.layerwise_rates().items())
    return found


if __name__ == "__main__":
    micro, examples = (int(argument) or None for argument in sys.argv[2:4])
    keras.config.set_floatx(sys.argv[5])
    keras.config.set_dtype_policy(sys.argv[5])
    np.savez(sys.argv[1], **run(micro, examples, sys.argv[4]))
