"""The cases of `layerwise_cases` in tf_keras: its variables and its way to take a step."""

from __future__ import annotations

import inspect

import layerwise_cases as cases
import numpy as np
import tensorflow as tf
import tf_keras
from layerwise_cases import SHAPES, gradients  # noqa: F401  (for the tests)
from paper_settings import paper

from tf_largebatch.tf_keras.optimizers import CLARS, LARS

# Those of CLARS in Keras 3 that tf_keras has; it allows two ways to clip at once.
OTHER_ARGUMENTS = {
    **{name: value for name, value in cases.OTHER_ARGUMENTS.items() if name in inspect.signature(CLARS).parameters},
    "clipvalue": 1.0,
}


def other_arguments(cls, **changes):
    arguments = {**OTHER_ARGUMENTS, **changes}
    if cls is LARS:
        for name in ("gradient_norms", "norm_exponent", "max_agreement"):
            arguments.pop(name, None)
    return arguments


def make(cls, *args, **kwargs):
    """An optimizer with the papers' arguments that never warns: CLARS by default with the norms of the replicas."""
    return paper(cls, *args, **({"gradient_norms": "replica"} if issubclass(cls, CLARS) else {}) | kwargs)


def variables(dtype="float32", seed=0):
    generator = np.random.default_rng(seed)
    return [tf.Variable(generator.normal(size=shape), dtype=dtype, name=path) for path, shape in SHAPES.items()]


def norms(steps):
    """For each step a norm for each variable, of the size of the gradients'."""
    return [list(some.values()) for some in cases.norms(steps)]


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
