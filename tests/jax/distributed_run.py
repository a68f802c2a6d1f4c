"""Trains small networks under `keras.distribution.DataParallel` on several virtual CPU devices; weights go to a file.

python tests/jax/distributed_run.py DEVICES FILE.npz
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"

import keras
import numpy as np
from keras import layers

import tf_largebatch as lb

CASES = {
    "whole, and a smaller last batch": ({}, 24),
    "micro-batches, the last one smaller, sampled": ({"micro_batch_size": 16, "norm_examples": 12}, 40),
}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 8, 8, 3)).astype("float32"), RNG.integers(0, 5, 40)


def wrapped(**arguments) -> lb.LargeBatchModel:
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm"), layers.ReLU(), layers.Flatten()]
    net = keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.Dense(5, name="head")], name="net")
    model = lb.LargeBatchModel(net, **arguments)
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")]
    model.compile(lb.CLARS(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=metrics)
    return model


def run() -> dict[str, np.ndarray]:
    """Returns weights, norms and logs of every case, and the sentences for batches that the devices do not divide."""
    found = {}
    for name, (arguments, batch_size) in CASES.items():
        model = wrapped(**arguments)
        logs = model.fit(X, Y, batch_size=batch_size, shuffle=False, verbose=0).history
        found.update((f"{name}/{v.path}", v.numpy()) for v in model.weights)
        found.update((f"{name}/norm {path}", np.asarray(s)) for path, s in model.optimizer.gradient_norms().items())
        found.update((f"{name}/{log}", np.asarray(values)) for log, values in logs.items())
    return found


def refusals() -> list[str]:
    sentences = []
    batches = ((X[i : i + 20], Y[i : i + 20]) for i in (0, 20))
    for data in ({"x": X, "y": Y, "batch_size": 20}, {"x": X[:36], "y": Y[:36], "batch_size": 16}, {"x": batches}):
        model = wrapped()
        try:
            model.fit(**data, verbose=0)
        except ValueError as error:
            sentences.append(str(error))
    return sentences


if __name__ == "__main__":
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    spread = wrapped().trainable_variables[0].value.sharding.num_devices
    np.savez(sys.argv[2], **run(), devices=spread, refusals=refusals() if spread == 8 else [])
