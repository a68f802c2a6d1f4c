"""Trains small models with everything that draws random numbers; as a program it prints a hash of all that results.

KERAS_BACKEND=jax python tests/reliability/determinism_run.py CASE ...
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable

import keras
import numpy as np
from keras import layers as L

import tf_largebatch as lb

EXAMPLES, BATCH, CLASSES, SHAPE = 24, 8, 3, (6, 6, 2)


def network() -> keras.Model:
    """Convolution, batch normalization and dropout."""
    stack = [L.Rescaling(1 / 255), L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), L.ReLU()]
    return keras.Sequential([keras.Input(SHAPE), *stack, L.Dropout(0.3), L.Flatten(), L.Dense(CLASSES)])


# Shuffled batches, dropout, initial weights, and what a sample of the norms, an attack and micro-batches add to them.
CASES: dict[str, Callable[[], keras.Model]] = {
    "norms of all": lambda: lb.LargeBatchModel(network()),
    "sampled norms": lambda: lb.LargeBatchModel(network(), norm_examples=3),
    "micro-batches": lambda: lb.LargeBatchModel(network(), micro_batch_size=3),
    "ConAdv": lambda: lb.ConAdvModel(network(), num_steps=2, staleness=2, random_start=0.8, targeted=True),
    "ConAdv, noise, augmented": lambda: lb.ConAdvModel(
        network(), attack="noise", norm="l2", norm_examples=3, augment=L.RandomTranslation(0.2, 0.2)
    ),
}


def trained(case: str, seed: int = 0, epochs: int = 2, run_eagerly: bool = False) -> str:
    """Trains a case from a seed.

    Args:
        case: A key of `CASES`.
        seed: The seed.
        epochs: Epochs of three steps each.
        run_eagerly: Whether the steps run eagerly.

    Returns:
        A hash of the bits of all weights, optimizer variables and losses.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (EXAMPLES, *SHAPE)).astype("float32"), rng.integers(0, CLASSES, EXAMPLES)
    model = CASES[case]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(lb.CLARS(0.5, weight_decay_rate=1e-3, use_ema=True), loss, run_eagerly=run_eagerly)
    history = model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    hashed = hashlib.sha256(json.dumps(history.history).encode())
    for v in [*model.variables, *model.optimizer.variables]:
        value = np.asarray(v)
        if np.issubdtype(value.dtype, np.floating):
            assert np.all(np.isfinite(value)), v.path
        hashed.update(value.tobytes())
    return hashed.hexdigest()


if __name__ == "__main__":
    print(json.dumps({case: trained(case) for case in sys.argv[1:] or CASES}))
