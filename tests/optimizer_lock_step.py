"""Fifty steps of CLARS and LARS on the backend in use, every step's values written to an .npz.

Run by tests/jax/test_lock_step_optimizers.py, once in its own process and once in one with the other backend.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import ops
from layerwise_cases import SHAPES, compiled, gradients, norms, variables
from paper_settings import paper

from tf_largebatch.core.schedules import WarmupPolynomialDecay
from tf_largebatch.optimizers import CLARS, LARS

STEPS = 50
# Gradients are those of a scaled loss, and of one step too large.
SCALED, OVERFLOW = "CLARS, loss scaling", 20
COMMON = {"eta": 0.05, "weight_decay_rate": 0.01}
CASES = {
    "CLARS, classic": (CLARS, COMMON),
    "CLARS, popular, cap, clipped": (CLARS, {**COMMON, "classic_momentum": False, "max_rate": 0.1, "clipnorm": 3.0}),
    "CLARS, exponent 0.75, Nesterov": (
        CLARS,
        {**COMMON, "norm_exponent": 0.75, "nesterov": True, "max_agreement": 0.3},
    ),
    "CLARS, accumulated": (CLARS, {**COMMON, "gradient_accumulation_steps": 2}),
    "LARS, classic, average": (LARS, {**COMMON, "use_ema": True, "ema_overwrite_frequency": 10}),
    "LARS, popular, biases slow": (LARS, {**COMMON, "classic_momentum": False, "unadapted_rate_factor": 0.25}),
    "CLARS, average": (CLARS, {**COMMON, "use_ema": True, "ema_momentum": 0.9}),
    "LARS, clipped by the norm of all": (LARS, {**COMMON, "global_clipnorm": 4.0}),
    "LARS, clipped by value": (LARS, {**COMMON, "clipvalue": 0.5}),
    SCALED: (CLARS, {**COMMON, "clipvalue": 0.5}),
}


def run() -> dict[str, np.ndarray]:
    """Returns for each case and tensor its values after every step, [STEPS, ...]."""
    found = {}
    for name, (cls, arguments) in CASES.items():
        schedule = WarmupPolynomialDecay(0.5, STEPS, 5)
        optimizer, trained, history = paper(cls, schedule, **arguments), variables(), []
        if name == SCALED:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 4.0, dynamic_growth_steps=15)
        optimizer.build(trained)
        step = compiled(optimizer, trained)
        for number, (some, of) in enumerate(zip(gradients(STEPS), norms(STEPS), strict=True)):
            too_large = name == SCALED and number == OVERFLOW
            some = [ops.convert_to_tensor(g * np.float32("inf") if too_large else g) for g in some]
            step(some, {p: ops.convert_to_tensor(s) for p, s in of.items()} if cls is CLARS else None)
            state = [v for v in optimizer.variables if v.dtype == "float32"]
            history.append([np.asarray(v) for v in (*trained, *state)])
        names = [*SHAPES, *(f"{i}, {v.name}" for i, v in enumerate(state))]
        for path, values in zip(names, zip(*history, strict=True), strict=True):
            found[f"{name}: {path}"] = np.stack(values)
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **run())
