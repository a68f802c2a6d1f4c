"""How `keras.distribution` spreads a batch over devices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import jax
import keras

from tf_largebatch.norms.device import devices_compiled_for


def sharding_of_data(shape: Sequence[int]) -> jax.sharding.NamedSharding | None:
    """Returns how a batch's array of this shape is spread over the devices; None without a distribution."""
    distribution = keras.distribution.distribution()
    return None if distribution is None else distribution.get_data_layout(tuple(shape)).backend_layout


def devices_of_a_batch() -> int:
    """Returns among how many devices the examples of a batch are split."""
    sharding = sharding_of_data((1,))
    if sharding is None or not sharding.spec:
        return 1
    axes = sharding.spec[0] if isinstance(sharding.spec[0], tuple) else (sharding.spec[0],)
    return math.prod(sharding.mesh.shape[axis] for axis in axes if axis is not None)


def is_spread_over_devices() -> bool:
    """Returns whether several devices each compute a part of the batch, within `compiling_for` those given there."""
    compiled_for = devices_compiled_for()
    return (devices_of_a_batch() if compiled_for is None else compiled_for) > 1


def devices_of_a_process() -> int:
    """Returns among how many of its devices a process splits its share of a batch, which is what `fit` gets."""
    return max(devices_of_a_batch() // jax.process_count(), 1)


@contextlib.contextmanager
def explaining_indivisible_batches() -> Iterator[None]:
    """Within it a batch that the devices do not divide raises a ValueError that says what to do."""
    try:
        yield
    except ValueError as error:
        if "should evenly divide the shape" not in str(error):
            raise
        raise ValueError(indivisible_message(f"{error}")) from error


def indivisible_message(received: str) -> str:
    """Returns the sentence for a batch that the devices do not divide."""
    return (
        f"Every batch must have a multiple of {devices_of_a_process()} examples, the number of devices among which "
        f"keras.distribution splits it; received {received}: choose another batch size, and drop the last, smaller "
        "batch or fill it up."
    )
