"""Cases of the layer-wise optimizers: tables for both Keras worlds, and small variables, gradients and norms."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
from keras import ops
from paper_settings import paper

from tf_largebatch.optimizers import CLARS, LARS

SHAPES = {"stem/kernel": (3, 3, 2, 4), "stem/bias": (4,), "head/kernel": (4, 5)}

# Every argument of CLARS away from its default; LARS has all but the last two.
OTHER_ARGUMENTS = {
    "learning_rate": 0.375,
    "momentum": 0.75,
    "eta": 0.625,
    "weight_decay_rate": 0.125,
    "nesterov": True,
    "classic_momentum": False,
    "epsilon": 0.0625,
    "max_rate": 0.4375,
    "unadapted_rate_factor": 0.3125,
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
    "norm_exponent": 0.5,
    "max_agreement": 0.25,
}


# Arguments that are refused, in both Keras worlds.
OUT_OF_RANGE = [
    ("learning_rate", -0.1),
    ("learning_rate", float("nan")),
    ("momentum", -0.1),
    ("momentum", 1.0),
    ("eta", 0.0),
    ("eta", "0.1"),
    ("epsilon", -1e-6),
    ("weight_decay_rate", -1e-4),
    ("weight_decay_rate", None),
    ("max_rate", 0.0),
    ("max_rate", [0.1]),
    ("unadapted_rate_factor", -1.0),
    ("unadapted_rate_factor", float("inf")),
    ("nesterov", "False"),
    ("classic_momentum", None),
]

# Measured norms that are refused, for the variables of SHAPES, and what the refusal says.
MALFORMED_NORMS = [
    ({"stem/kernel": 1.0}, r"lack \['head/kernel'\].*exclude_from_layer_adaptation"),
    ([1.0, None, None], r"lack \['head/kernel'\]"),
    ([1.0, 1.0], "2 measured gradient norms for 3 variables"),
    ([[1.0, 2.0], None, 1.0], r"scalar; that of 'stem/kernel' has shape \(2,\)"),
    ({"stem/kernel": [1.0, 2.0], "head/kernel": 1.0}, r"scalar; that of 'stem/kernel' has shape \(2,\)"),
]


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
        some = [None if g is None else ops.convert_to_tensor(g) for g in some]
        if all_norms is None:
            optimizer.apply(some, trained)
        else:
            with optimizer.measured_gradient_norms(all_norms[step]):
                optimizer.apply(some, trained)
    return [v.numpy() for v in trained]


def compiled(optimizer, trained, jit_compile=None):
    """A compiled function that takes gradients, and norms or None, and updates the variables, on either backend.

    On JAX that is `stateless_apply`, as Keras's trainer calls it.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)

    def step(some, of=None):
        if of is None:
            optimizer.apply(some, trained)
        else:
            with inner.measured_gradient_norms(of):
                optimizer.apply(some, trained)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(step, jit_compile=jit_compile, autograph=False)
    import jax

    variables = [*trained, *optimizer.variables]

    @jax.jit
    def stateless(values, some, of):
        weights, state = values[: len(trained)], values[len(trained) :]
        with inner.measured_gradient_norms(of) if of is not None else contextlib.nullcontext():
            weights, state = optimizer.stateless_apply(state, some, weights)
        return [*weights, *state]

    def run(some, of=None):
        for variable, value in zip(variables, stateless([v.value for v in variables], some, of), strict=True):
            variable.assign(value)

    return run


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
