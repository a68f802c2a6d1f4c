"""What wraps the network of an arm: a model that measures norms, splits batches, or makes adversarial images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tf_largebatch.check import require
from tf_largebatch.conadv import ConAdvModel
from tf_largebatch.study.denominators import wrapper
from tf_largebatch.training import LargeBatchModel

# Arguments of `ConAdvModel` that an arm may set; what else it needs follows from the study.
ARGUMENTS = (
    "epsilon",
    "step_size",
    "num_steps",
    "staleness",
    "targeted",
    "random_start",
    "adversarial_weight",
    "attack",
    "norm",
)


def check_adversarial(where: str, arguments: Any) -> None:
    """Raises ValueError unless an arm's `adversarial` is None or holds arguments of `ConAdvModel`."""
    require(arguments is None or isinstance(arguments, Mapping), where, arguments, "a mapping")
    unknown = sorted(set(arguments or ()) - set(ARGUMENTS))
    require(not unknown, where, unknown, f"made of {', '.join(ARGUMENTS)}")


def wrapped(
    network: keras.Model,
    point: Mapping[str, Any],
    measures_norms: bool,
    norm_examples: int | None,
    micro_batch_size: int | None,
    adversarial: Mapping[str, Any] | None,
    value_range: Any,
    seed: int,
) -> keras.Model:
    """Wraps a network as an arm needs it; returns the network itself where nothing is needed.

    Args:
        network: The network.
        point: The hyper-parameters of the run.
        measures_norms: Whether the optimizer needs per-example gradient norms.
        norm_examples: Examples of a batch that are measured; None for all.
        micro_batch_size: Examples that run at a time; None for the whole batch.
        adversarial: Arguments of `ConAdvModel`; None to train on clean images.
        value_range: Range of each channel of the images, for the attack.
        seed: Of the attack.
    """
    arguments: dict[str, Any] = {"norm_examples": norm_examples, "micro_batch_size": micro_batch_size}
    if adversarial is not None:
        return ConAdvModel(network, value_range=value_range, seed=seed, **arguments, **adversarial)
    if measures_norms:
        return wrapper(point)(network, **arguments)
    return network if micro_batch_size is None else LargeBatchModel(network, micro_batch_size=micro_batch_size)
