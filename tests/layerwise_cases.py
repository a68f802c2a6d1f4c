"""Small variables, gradients and norms for the tests of the layer-wise optimizers."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tf_largebatch.optimizers import CLARS, LARS

SHAPES = {"stem/kernel": (3, 3, 2, 4), "stem/bias": (4,), "head/kernel": (4, 5)}

# Every argument of CLARS away from its default; LARS has all but the last.
OTHER_ARGUMENTS = {
    "learning_rate": 0.25,
    "momentum": 0.75,
    "eta": 0.5,
    "weight_decay_rate": 0.125,
    "nesterov": True,
    "classic_momentum": False,
    "epsilon": 0.0625,
    "max_rate": 0.5,
    "jit_compile": True,
    "exclude_from_layer_adaptation": ["stem"],
    "exclude_from_weight_decay": [],
    "clipnorm": 2.0,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 3,
    "loss_scale_factor": 8.0,
    "gradient_accumulation_steps": 2,
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
    made = []
    for path, shape in SHAPES.items():
        scope, name = path.split("/")
        with keras.name_scope(scope):
            made.append(keras.Variable(generator.normal(size=shape), dtype=dtype, name=name))
    return made


def gradients(steps, seed=1, scale=1.0):
    """For each step, for each variable, a float32 gradient."""
    generator = np.random.default_rng(seed)
    return [
        [(scale * generator.normal(size=shape)).astype("float32") for shape in SHAPES.values()] for _ in range(steps)
    ]


def norms(steps, seed=2):
    """For each step measured norms by path, of the size of the gradients'."""
    generator = np.random.default_rng(seed)
    return [{path: np.float32(generator.uniform(1.0, 9.0)) for path in SHAPES} for _ in range(steps)]


def apply_all(optimizer, all_gradients, trained, all_norms=None):
    for step, some in enumerate(all_gradients):
        some = [None if g is None else tf.constant(g) for g in some]
        if all_norms is None:
            optimizer.apply(some, trained)
        else:
            with optimizer.measured_gradient_norms(all_norms[step]):
                optimizer.apply(some, trained)
    return [v.numpy() for v in trained]


def regression(examples=16, features=4, outputs=3, seed=3):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(examples, features)).astype("float32")
    return x, (x @ generator.normal(size=(features, outputs))).astype("float32")


def small_model(features=4, outputs=3):
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.Dense(outputs, name="head"),
        ]
    )
