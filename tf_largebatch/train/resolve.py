"""Checks the arguments of a run and fills in the defaults that depend on other arguments."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

from tf_largebatch import data, models, pretrained
from tf_largebatch.check import require
from tf_largebatch.data.npz import is_npz
from tf_largebatch.distribute import strategies
from tf_largebatch.files import local_path
from tf_largebatch.train import adversarial, optimizers
from tf_largebatch.train.config import FLAGS, TrainConfig

_POSITIVE = (lambda value: 0 < value < math.inf, "above 0 and finite")
_NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "0 or more and finite")
_COUNT = (lambda value: value >= 1, "1 or more")
_FRACTION = (lambda value: 0 <= value < 1, "at least 0 and below 1")

# Flag -> what its value must satisfy if it has one, and that rule in words.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch_size": _COUNT,
    "epochs": _COUNT,
    "image_size": _COUNT,
    "validation_examples": _COUNT,
    "base_batch_size": _COUNT,
    "base_learning_rate": _POSITIVE,
    "power": _POSITIVE,
    "end_learning_rate": _NOT_NEGATIVE,
    "weight_decay_rate": _NOT_NEGATIVE,
    "momentum": _FRACTION,
    "label_smoothing": _FRACTION,
    "mixup": _NOT_NEGATIVE,
    "clip_norm": _POSITIVE,
    "ema_momentum": _FRACTION,
    "eta": _POSITIVE,
    "max_rate": (lambda value: value > 0, "above 0"),
    "unadapted_rate_factor": _NOT_NEGATIVE,
    "norm_exponent": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "max_agreement": (lambda value: value > 0, "above 0"),
    "epsilon": _NOT_NEGATIVE,
    "step_size": _NOT_NEGATIVE,
    "eval_epsilon": _NOT_NEGATIVE,
    "staleness": (lambda value: value >= 1, "1 or more; --adversarial=disadv uses the present weights"),
    "num_steps": _COUNT,
    "random_start": (lambda value: 0 <= value <= 1, "a probability from 0 to 1"),
    "seed": (lambda value: 0 <= value < 2**31, "from 0 to 2147483647"),
    "record_every": _COUNT,
    "verbose": (lambda value: value in (0, 1, 2), "0, 1 or 2"),
}


@dataclasses.dataclass(frozen=True)
class Applies:
    """When flags apply.

    Attributes:
        flags: Their names.
        when: Whether they apply, by the other flags' values.
        by: The flag that decides it, which the message shows with its value.
        to: What they apply to, in words.
    """

    flags: tuple[str, ...]
    when: Callable[[TrainConfig], bool]
    by: str
    to: str


def _takes(name: str) -> Callable[[TrainConfig], bool]:
    return lambda config: name in optimizers.OPTIMIZERS[config.optimizer.name].arguments


def _measures_norms(config: TrainConfig) -> bool:
    return optimizers.OPTIMIZERS[config.optimizer.name].reads_norms or bool(config.run.noise_scale)


APPLIES = (
    Applies(
        ("weights", "mixed_precision"),
        lambda c: not pretrained.is_file(c.model.name),
        "model",
        "models by name; a file has weights and dtypes of its own",
    ),
    Applies(
        ("weights",),
        lambda c: models.is_application(c.model.name),
        "model",
        "networks of keras.applications",
    ),
    Applies(("base_batch_size",), lambda c: c.optimizer.scaling != "none", "scaling", "scaling=linear and sqrt"),
    Applies(("momentum",), _takes("momentum"), "optimizer", "optimizers with momentum"),
    Applies(("weight_decay_rate",), _takes("weight_decay_rate"), "optimizer", "optimizers with weight decay"),
    *(
        Applies((name,), _takes(name), "optimizer", "clars and lars")
        for name in ("eta", "max_rate", "unadapted_rate_factor", "classic_momentum")
    ),
    *(Applies((name,), _takes(name), "optimizer", "clars") for name in ("norm_exponent", "max_agreement")),
    Applies(
        ("record_every",),
        lambda c: optimizers.OPTIMIZERS[c.optimizer.name].layerwise,
        "optimizer",
        "clars and lars, whose layer-wise rates are recorded",
    ),
    Applies(("norm_examples",), _measures_norms, "optimizer", "clars, and other optimizers with --noise_scale"),
    Applies(
        ("noise_scale",),
        lambda c: c.adversarial.kind == "none" or not c.run.noise_scale,
        "adversarial",
        "training on clean images, which have one gradient each",
    ),
    Applies(
        ("epsilon",),
        lambda c: c.adversarial.kind != "none",
        "adversarial",
        "adversarial training, and eval_epsilon to eval_attack",
    ),
    Applies(
        ("augmented_stream",),
        lambda c: c.adversarial.kind != "none",
        "adversarial",
        "adversarial training, and augment to all training",
    ),
    Applies(("staleness",), lambda c: c.adversarial.kind == "conadv", "adversarial", "adversarial=conadv"),
    Applies(
        ("num_steps", "step_size", "random_start", "targeted"),
        lambda c: c.adversarial.kind in adversarial.ATTACKS,
        "adversarial",
        "adversarial=conadv and disadv",
    ),
    Applies(
        ("eval_epsilon",),
        lambda c: c.adversarial.eval_attack != "none",
        "eval_attack",
        "eval_attack=untargeted and targeted",
    ),
    Applies(("mixup",), lambda c: c.adversarial.kind == "none", "adversarial", "training on clean images"),
    Applies(
        ("ema_momentum", "save_best", "tensorboard"),
        lambda c: c.run.strategy != "tpu",
        "strategy",
        "every other strategy",
    ),
    Applies(("replicas",), lambda c: c.run.strategy == "mirrored", "strategy", "strategy=mirrored"),
    Applies(("tpu",), lambda c: c.run.strategy == "tpu", "strategy", "strategy=tpu"),
)  # fmt: skip


def resolved(config: TrainConfig) -> TrainConfig:
    """Returns the arguments checked, with canonical names and every default filled in.

    Arguments that do not apply stay None. What is resolved resolves to itself.

    Raises:
        ValueError: In one sentence that names the argument and its value.
    """
    _check_values(config)
    network = config.model.name
    # Absolute, so that the run can be repeated from another directory.
    network = (
        str(local_path(network, "model").absolute()) if pretrained.is_file(network) else models.canonical_name(network)
    )
    config = config.with_flags(model=network, optimizer=optimizers.canonical_name(config.optimizer.name))
    _check_applicable(config)
    clean = config.adversarial.kind == "none"
    row = optimizers.OPTIMIZERS[config.optimizer.name]
    config = dataclasses.replace(
        config,
        optimizer=optimizers.with_defaults(config.optimizer, config.data.name),
        adversarial=adversarial.with_defaults(config.adversarial),
    )
    defaults = {"noise_scale": row.reads_norms and clean, "verbose": 1 if sys.stdout.isatty() else 2}
    values = config.flags()
    if config.data.name == data.FOLDER:
        # Absolute, so that the run can be repeated from another directory.
        config = config.with_flags(data_dir=str(local_path(values["data_dir"], "data_dir").absolute()))
    if is_npz(config.data.name):
        config = config.with_flags(dataset=str(local_path(config.data.name, "dataset").absolute()))
    if values["output_dir"]:
        config = config.with_flags(output_dir=str(local_path(values["output_dir"], "output_dir")))
    return config.with_flags(**{name: value for name, value in defaults.items() if values[name] is None})


def _check_values(config: TrainConfig) -> None:
    values, run = config.flags(), config.run
    for name, one in FLAGS.items():
        value = values[name]
        if value is not None:
            require(not one.choices or value in one.choices, name, value, f"one of {', '.join(one.choices or ())}")
            if name in RANGES:
                holds, rule = RANGES[name]
                require(holds(value), name, value, rule)
    for name in ("norm_examples", "micro_batch_size"):
        value = values[name]
        words = FLAGS[name].words
        rule = f"from 1 to the batch size, {run.batch_size}" + "".join(f", or {word}" for word in words)
        fits = value is None or value in words or (isinstance(value, int) and 1 <= value <= run.batch_size)
        require(fits, name, value, rule)
    warmup = config.optimizer.warmup_epochs
    require(0 <= warmup < run.epochs, "warmup_epochs", warmup, f"0 or more, below the {run.epochs} epochs")
    stop = run.stop_after_epoch
    require(stop is None or 1 <= stop <= run.epochs, "stop_after_epoch", stop, f"from 1 to the {run.epochs} epochs")
    require(
        not run.tensorboard or data.tensorflow_is_installed(),
        "tensorboard",
        run.tensorboard,
        "left out where TensorFlow is not installed",
        "it writes the events: pip install tensorflow",
    )
    needs_directory = config.data.name == data.FOLDER
    require(not needs_directory or bool(config.data.data_dir), "data_dir", None, "given with dataset=folder")
    require(not run.resume or bool(run.output_dir), "output_dir", run.output_dir, "given with resume")
    require(
        run.strategy != "multi_worker" or bool(run.output_dir),
        "output_dir",
        run.output_dir,
        "given with strategy=multi_worker, and shared by all workers",
    )


def _check_applicable(config: TrainConfig) -> None:
    values, chosen = config.flags(), config.data
    data.check_applicable(chosen.name, chosen.data_dir, chosen.download, chosen.eval_split, chosen.validation_examples)
    for one in APPLIES:
        for name in one.flags:
            given = values[name] is not None and values[name] != FLAGS[name].default
            require(
                not given or one.when(config),
                name,
                values[name],
                f"left out with {one.by}={values[one.by]}",
                f"it applies to {one.to}",
            )
    strategies.check(config.run.strategy, config.run.replicas)
