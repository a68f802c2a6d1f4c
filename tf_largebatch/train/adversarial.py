"""Adversarial training from the command line: its flags, the model that they mean, and robust accuracy."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tf_largebatch import data, pretrained
from tf_largebatch.check import require
from tf_largebatch.conadv import ConAdvModel, accuracy_under_attack
from tf_largebatch.train.flag import flag

ADVERSARIAL = ("none", "conadv", "disadv", "noise")
AUGMENTED_STREAMS = ("none", "rand_augment")
EVAL_ATTACKS = ("none", "untargeted", "targeted")
EPSILON = 4.0


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Adversarial training, and the attack that the final model is evaluated under."""

    kind: str = flag(
        "none",
        "Train on adversarial images as well. conadv: attack the next batch during the update; disadv: attack before "
        "the update; noise: random perturbations instead of an attack.",
        ADVERSARIAL,
        name="adversarial",
    )
    epsilon: float | None = flag(
        None, "With --adversarial: radius of the L-inf ball in units of 1/255 of the value range; default: 4."
    )
    staleness: int | None = flag(
        None, "With --adversarial=conadv: age in updates of the weights that the attack uses; default: 1."
    )
    num_steps: int | None = flag(
        None, "With --adversarial=conadv or disadv: number of gradient steps of the attack; default: 1."
    )
    step_size: float | None = flag(
        None,
        "With --adversarial=conadv or disadv: length of a gradient step of the attack in units of 1/255 of the value "
        "range; default: epsilon / num_steps.",
    )
    random_start: float | None = flag(
        None,
        "With --adversarial=conadv or disadv: probability that the attack starts at a random point of the ball; "
        "default: 0.8.",
    )
    targeted: bool | None = flag(
        None,
        "With --adversarial=conadv or disadv: decrease the loss of a random wrong class instead of increasing that of "
        "the true class; default: yes.",
    )
    augmented_stream: str = flag(
        "none", "With --adversarial: train on an augmented view of each image as well.", AUGMENTED_STREAMS
    )
    eval_attack: str = flag(
        "none", "Evaluate the final model under a one-step attack on the evaluation images.", EVAL_ATTACKS
    )
    eval_epsilon: float | None = flag(
        None,
        "With --eval_attack: radius of that attack in units of 1/255 of the value range; default: epsilon, else 4.",
    )


# The kinds that follow a gradient; the values that they get where a flag is not given.
ATTACKS = ("conadv", "disadv")
_ATTACK_DEFAULTS = {"num_steps": 1, "random_start": 0.8, "targeted": True}


def with_defaults(config: AdversarialConfig) -> AdversarialConfig:
    """Fills in the defaults; arguments that do not apply stay None."""
    defaults: dict[str, Any] = {}
    if config.kind != "none":
        defaults["epsilon"] = EPSILON
    if config.kind in ATTACKS:
        defaults.update(_ATTACK_DEFAULTS)
    if config.kind == "conadv":
        defaults["staleness"] = 1
    if config.eval_attack != "none":
        defaults["eval_epsilon"] = EPSILON if config.epsilon is None else config.epsilon
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def wrapped(config: AdversarialConfig, inner: keras.Model, dataset: data.Dataset, **options: Any) -> ConAdvModel:
    """Wraps a network so that it trains on adversarial images as well.

    Args:
        config: The arguments, resolved.
        inner: The network.
        dataset: The data, whose value range the attack keeps to.
        **options: Other arguments of `ConAdvModel`.
    """
    assert config.epsilon is not None  # it is resolved
    if config.kind == "noise":
        options["attack"] = "noise"
    else:
        options.update({name: getattr(config, name) for name in ("num_steps", "step_size", "random_start", "targeted")})
        options["staleness"] = config.staleness or 0
    return ConAdvModel(
        inner,
        epsilon=config.epsilon,
        value_range=dataset.value_range(),
        augment=rand_augment(dataset) if config.augmented_stream == "rand_augment" else None,
        **options,
    )


def rand_augment(dataset: data.Dataset) -> keras.Sequential:
    """Builds Keras's RandAugment at its default strength, from standardized images to standardized images.

    Raises:
        ValueError: For images that are neither RGB nor grey, and for grey images before Keras 3.15, which needs three
            channels.
    """
    channels = dataset.image_shape[-1]
    require(
        channels in (1, 3),
        "augmented_stream",
        "rand_augment",
        f"none for images of {channels} channels",
        "RandAugment takes RGB or grey images",
    )
    takes_grey = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15)
    rule = f"none for grey images with Keras {keras.__version__}"
    require(
        channels == 3 or takes_grey,
        "augmented_stream",
        "rand_augment",
        rule,
        "RandAugment takes them from Keras 3.15 on",
    )
    # RandAugment works on values from 0 to 255.
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


def attack_in_words(config: AdversarialConfig) -> str:
    """Returns the attack of --eval_attack in words."""
    return f"one {config.eval_attack} step of {config.eval_epsilon:g} in units of 1/255"


def robust_accuracy(
    config: AdversarialConfig, model: keras.Model, dataset: data.Dataset, batch_size: int, seed: int
) -> float:
    """Evaluates a classifier under the attack of --eval_attack.

    Args:
        config: The arguments, resolved.
        model: The classifier.
        dataset: The data.
        batch_size: Images evaluated at once.
        seed: Seed of the attack's targets.
    """
    assert config.eval_epsilon is not None  # it is resolved
    return accuracy_under_attack(
        model,
        dataset.evaluation(batch_size),
        keras.losses.SparseCategoricalCrossentropy(from_logits=pretrained.returns_logits(model)),
        epsilon=config.eval_epsilon,
        value_range=dataset.value_range(),
        targeted=config.eval_attack == "targeted",
        seed=seed,
    )


def in_words(config: AdversarialConfig) -> str:
    """Returns a line about the adversarial images that a run trains on; empty if there are none."""
    if config.kind == "none":
        return ""
    how = "random noise"
    if config.kind in ATTACKS:
        targets = "targeted" if config.targeted else "untargeted"
        steps = "1 step" if config.num_steps == 1 else f"{config.num_steps} steps"
        age = f"weights {config.staleness} updates old" if config.staleness else "the present weights"
        how = f"{targets} attacks of {steps} with {age}"
    view = ", and an augmented view" if config.augmented_stream != "none" else ""
    return f"{config.kind}: adversarial images within {config.epsilon:g}/255 by {how}{view}.\n"
