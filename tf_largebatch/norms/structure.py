"""What the structure checks of the backends share; `backend/tensorflow/structure.py` says what it is for."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tf_largebatch.keras_internals import layers_within, recorded_losses
from tf_largebatch.norms.recorder import layer_path

PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049)
SMALL_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


def foreign_prime(primes: Sequence[int], tensors: Sequence[Any], layers: Sequence[Any]) -> int:
    """Returns a prime that divides no size of the inputs but the batch's, and none of the weights."""
    sizes = [n for t in tensors for n in t.shape[1:]] + [
        n for layer in layers for v in layer.variables for n in v.shape
    ]
    return next(p for p in primes if all(n % p for n in sizes if n))


@contextlib.contextmanager
def without_trace(model: Any) -> Iterator[None]:
    """Restores what a forward pass that is only traced leaves behind: Python's random numbers and lists of losses."""
    states = random.getstate(), np.random.get_state()
    lists = [(losses, list(losses)) for layer in layers_within(model) for losses in recorded_losses(layer)]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for losses, before in lists:
            losses[:] = before


def untraceable_message(model: Any, batch_size: Any, error: Exception) -> str:
    """Returns the sentence for a model that cannot be traced with another batch size."""
    return (
        f"Per-example gradient norms are not available: {layer_path(model)!r} could not be traced with another batch "
        f"size than {batch_size} ({type(error).__name__}: {error}). Write the model for any batch size or train with "
        "gradient_norms='replica'."
    )


def no_batch_message(model: Any, arguments: Sequence[Any], batch_size: Any) -> str:
    """Returns the sentence for a model that is called without the batch."""
    return (
        f"Per-example gradient norms need inputs with the examples on axis 0; {layer_path(model)!r} was called "
        f"with {[getattr(t, 'shape', t) for t in arguments]} for a batch of {batch_size}. Pass the batch to the model "
        "or train with gradient_norms='replica'."
    )
