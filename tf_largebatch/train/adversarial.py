"""Adversarial training in the command line: its arguments, the wrapper they mean, and accuracy under attack."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras

from tf_largebatch import data
from tf_largebatch.conadv import ConAdvModel, accuracy_under_attack

if TYPE_CHECKING:
    from tf_largebatch.train.config import TrainConfig

ADVERSARIAL = ("none", "conadv", "disadv", "noise")
AUGMENTED_STREAMS = ("none", "rand_augment")
EVAL_ATTACKS = ("none", "untargeted", "targeted")
EPSILON = 4.0
# Of the attacks that follow a gradient; what conadv and disadv get where nothing is asked for.
_ATTACK_DEFAULTS = {"attack_steps": 1, "step_size": None, "random_start": 0.8, "targeted": True}


def resolved_adversarial(config: TrainConfig) -> dict[str, Any]:
    """The arguments of adversarial training with defaults filled in; None where they do not apply.

    Raises:
        ValueError: In one sentence that names the argument and its value.
    """
    kind = config.adversarial
    _check_ranges(config)
    _check_applicable(config, kind)
    if config.noise_scale and kind != "none":
        raise ValueError(
            "noise_scale must be left out with adversarial training, whose images have several gradients each; "
            f"received noise_scale=True with adversarial={kind!r}."
        )
    if config.eval_attack == "none" and config.eval_epsilon is not None:
        raise ValueError(
            f"eval_epsilon applies to eval_attack; received eval_epsilon={config.eval_epsilon} with eval_attack='none'."
        )

    def either(name: str, default: Any) -> Any:
        value = getattr(config, name)
        return default if value is None else value

    found: dict[str, Any] = {}
    if kind != "none":
        found["epsilon"] = either("epsilon", EPSILON)
    if kind in ("conadv", "disadv"):
        found.update({name: either(name, default) for name, default in _ATTACK_DEFAULTS.items()})
        found["staleness"] = either("staleness", 1 if kind == "conadv" else 0)
    if config.eval_attack != "none":
        found["eval_epsilon"] = either("eval_epsilon", found.get("epsilon", EPSILON))
    return found


def wrapped(config: TrainConfig, inner: keras.Model, dataset: data.Dataset) -> ConAdvModel:
    """The model that trains on adversarial copies as well, of resolved arguments."""
    arguments: dict[str, Any] = {"epsilon": config.epsilon, "attack": "noise"}
    if config.adversarial != "noise":
        arguments = {
            "epsilon": config.epsilon,
            "staleness": config.staleness,
            "num_steps": config.attack_steps,
            "step_size": config.step_size,
            "random_start": config.random_start,
            "targeted": config.targeted,
        }
    augment = None
    if config.augmented_stream == "rand_augment":
        augment = rand_augment(dataset)
    return ConAdvModel(
        inner,
        value_range=dataset.value_range(),
        augment=augment,
        norm_examples=config.norm_examples,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        **arguments,
    )


def rand_augment(dataset: data.Dataset) -> keras.Sequential:
    """Keras's RandAugment with its default strength, from standardised images to standardised images.

    Raises:
        ValueError: For images that are neither RGB nor grey.
    """
    channels = dataset.image_shape[-1]
    if channels not in (1, 3):
        raise ValueError(
            f"augmented_stream must be none for images of {channels} channels: RandAugment takes RGB or grey ones; "
            "received augmented_stream='rand_augment'."
        )
    # In pixels of 255, whatever the stored ones were.
    scale, offset = [255.0 * s for s in dataset.std], [255.0 * m for m in dataset.mean]
    back = [1.0 / s for s in scale], [-o / s for o, s in zip(offset, scale, strict=True)]
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(dataset.image_shape),
            layers.Rescaling(scale, offset, dtype="float32"),
            layers.RandAugment(value_range=(0, 255), dtype="float32"),
            layers.Rescaling(*back, dtype="float32"),
        ],
        name="rand_augment",
    )


def under_attack(config: TrainConfig, model: keras.Model, dataset: data.Dataset, batch_size: int) -> tuple[str, float]:
    """The attack of --eval_attack in words, and the accuracy of a classifier of logits under it."""
    epsilon = EPSILON if config.eval_epsilon is None else config.eval_epsilon
    accuracy = accuracy_under_attack(
        model,
        dataset.evaluation(batch_size),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        epsilon=epsilon,
        value_range=dataset.value_range(),
        targeted=config.eval_attack == "targeted",
        seed=config.seed,
    )
    return f"one {config.eval_attack} step of {epsilon:g} pixels of 255", accuracy


def in_words(config: TrainConfig) -> str:
    """A line about the copies that a run will train on; empty if there are none."""
    if config.adversarial == "none":
        return ""
    if config.adversarial == "noise":
        how = "random noise"
    else:
        targets = "targeted" if config.targeted else "untargeted"
        steps = "1 step" if config.attack_steps == 1 else f"{config.attack_steps} steps"
        how = f"{targets} attacks of {steps} with weights {config.staleness} updates old"
    third = ", and an augmented view" if config.augmented_stream != "none" else ""
    return f"{config.adversarial}: copies within {config.epsilon:g} pixels of 255, made by {how}{third}.\n"


def _check_ranges(config: TrainConfig) -> None:
    def require(name: str, must: str, holds: Any) -> None:
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} must be {must}; received {name}={value!r}.")

    for name in ("epsilon", "step_size", "eval_epsilon"):
        require(name, "finite and 0 or more", lambda v: math.isfinite(v) and v >= 0)
    require("staleness", "0 or more", lambda v: v >= 0)
    require("attack_steps", "1 or more", lambda v: v >= 1)
    require("random_start", "a probability from 0 to 1", lambda v: 0 <= v <= 1)


def _check_applicable(config: TrainConfig, kind: str) -> None:
    received = f"with adversarial={kind!r}"
    for name in ("staleness", *_ATTACK_DEFAULTS):
        value = getattr(config, name)
        if value is not None and kind in ("none", "noise"):
            raise ValueError(f"{name} applies to adversarial=conadv and disadv; received {name}={value!r} {received}.")
    if config.epsilon is not None and kind == "none":
        raise ValueError(
            "epsilon applies to adversarial training, eval_epsilon to eval_attack; "
            f"received epsilon={config.epsilon!r} {received}."
        )
    if config.augmented_stream != "none" and kind == "none":
        raise ValueError(
            "augmented_stream applies to adversarial training, augment to any; received "
            f"augmented_stream={config.augmented_stream!r} {received}."
        )
    if kind == "conadv" and config.staleness == 0:
        raise ValueError(
            "staleness must be 1 or more with adversarial=conadv; received staleness=0, which is adversarial=disadv."
        )
    if kind == "disadv" and config.staleness:
        raise ValueError(
            "staleness must be 0 with adversarial=disadv, whose attack waits for the update; received "
            f"staleness={config.staleness}: adversarial=conadv takes it."
        )
