"""Small tf_keras variables, gradients and norms for the tests of the garden's optimizers."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras

from tf_largebatch.tf_keras.optimizers import CLARS, LARS

SHAPES = {"stem/kernel": (3, 3, 2, 4), "stem/bias": (4,), "head/kernel": (4, 5)}

# Every argument of CLARS away from its default, in numbers that float32 holds; LARS has all but the last.
OTHER_ARGUMENTS = {
    "learning_rate": 0.25,
    "momentum": 0.75,
    "eta": 0.5,
    "weight_decay_rate": 0.125,
    "nesterov": True,
    "classic_momentum": False,
    "epsilon": 0.0625,
    "max_rate": 0.5,
    "exclude_from_layer_adaptation": ["stem"],
    "exclude_from_weight_decay": [],
    "clipnorm": 2.0,
    "clipvalue": 1.0,
    "name": "other",
    "gradient_norms": "replica",
}


def other_arguments(cls, **changes):
    arguments = {**OTHER_ARGUMENTS, **changes}
    if cls is LARS:
        arguments.pop("gradient_norms", None)
    return arguments


def make(cls, *args, **kwargs):
    """An optimizer that never warns: CLARS by default with the norms of the replicas."""
    return cls(*args, **({"gradient_norms": "replica"} if issubclass(cls, CLARS) else {}) | kwargs)


def variables(dtype="float32", seed=0):
    generator = np.random.default_rng(seed)
    return [tf.Variable(generator.normal(size=shape), dtype=dtype, name=path) for path, shape in SHAPES.items()]


def gradients(steps, seed=1):
    """For each step, for each variable, a float32 gradient."""
    generator = np.random.default_rng(seed)
    return [[generator.normal(size=shape).astype("float32") for shape in SHAPES.values()] for _ in range(steps)]


def norms(steps, seed=2):
    """For each step a norm for each variable, of the size of the gradients'."""
    generator = np.random.default_rng(seed)
    return [[np.float32(generator.uniform(1.0, 9.0)) for _ in SHAPES] for _ in range(steps)]


def apply(optimizer, some, trained, some_norms=None, clars=None):
    """One step; `clars` is the optimizer that takes the norms where another wraps it."""
    pairs = [(None if g is None else tf.convert_to_tensor(g), v) for g, v in zip(some, trained, strict=True)]
    if some_norms is None:
        optimizer.apply_gradients(pairs)
    else:
        with (clars or optimizer).measured_gradient_norms(some_norms):
            optimizer.apply_gradients(pairs)


def apply_all(optimizer, all_gradients, trained, all_norms=None, clars=None):
    for step, some in enumerate(all_gradients):
        apply(optimizer, some, trained, None if all_norms is None else all_norms[step], clars)
    return [v.numpy() for v in trained]


def small_model(features=4, outputs=3):
    return tf_keras.Sequential(
        [
            tf_keras.layers.Input((features,)),
            tf_keras.layers.Dense(8, activation="tanh", name="hidden"),
            tf_keras.layers.Dense(outputs, name="head"),
        ]
    )
