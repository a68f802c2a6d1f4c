"""Arguments of a training run: their defaults, their checks, and the optimizer they mean (see `train.py`)."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from typing import Any

import keras

from tf_largebatch import data, models
from tf_largebatch.core.schedules import WarmupPolynomialDecay, linear_scaling, sqrt_scaling
from tf_largebatch.distribute import strategies
from tf_largebatch.optimizers import CLARS, LARS
from tf_largebatch.train.adversarial import (
    ADVERSARIAL,
    AUGMENTED_STREAMS,
    EVAL_ATTACKS,
    resolved_adversarial,
)

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
SCALINGS: dict[Any, Any] = {"linear": linear_scaling, "sqrt": sqrt_scaling, "none": lambda rate, batch_size, base: rate}
LAYERWISE = {"clars": CLARS, "lars": LARS}


@dataclasses.dataclass(frozen=True)
class OptimizerDefaults:
    """What an optimizer gets where nothing is asked for; `base_learning_rate` holds for batches of 128."""

    base_learning_rate: float
    scaling: str
    weight_decay: float | None
    eta: float | None = None
    max_rate: float | None = None


# By optimizer, or by optimizer and data set; README.md says how they were chosen. CLARS's and LARS's weight decay is
# the CLARS authors'. Their other values (base rate 0.1, eta 0.01, cap 0.1) are made for 90 epochs and more: within the
# 72 updates of a short run at batch 4096 the kernels hardly move, while the tensors without layer adaptation see the
# whole learning rate. A smaller rate with a larger eta serves both. The cap keeps a layer from ever exceeding the plain
# learning rate: without one, CLARS's rates grow without bound as the training loss vanishes, and weight decay, which
# they multiply, shrinks the weights. The digits have two updates an epoch. The others: what is customary; adaptive
# optimizers with the square root, as LAMB's authors scale.
DEFAULTS = {
    "clars": OptimizerDefaults(1 / 32, "linear", 2e-4, eta=0.3, max_rate=1.0),
    ("clars", "digits"): OptimizerDefaults(1.0, "linear", 2e-4, eta=0.01, max_rate=0.1),
    "lars": OptimizerDefaults(1 / 32, "linear", 2e-4, eta=0.03, max_rate=1.0),
    ("lars", "digits"): OptimizerDefaults(2.0, "linear", 2e-4, eta=0.001),
    "sgd": OptimizerDefaults(0.1, "linear", 2e-4),
    "lamb": OptimizerDefaults(1e-3, "sqrt", 1e-2),
    ("lamb", "digits"): OptimizerDefaults(5e-3, "sqrt", 1e-2),
}
OTHER_DEFAULTS = OptimizerDefaults(1e-3, "sqrt", None)


def _argument(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every argument of a run; each is a command line flag of the same name. None: see `resolved`."""

    dataset: str = _argument(
        "digits",
        f"{', '.join(data.WELL_KNOWN)}, or another tensorflow_datasets image classification name.",
    )
    data_dir: str | None = _argument(
        None, "Directory of prepared tensorflow_datasets; default: TFDS_DATA_DIR, else its own."
    )
    download: bool = _argument(False, "Download the data set if it is not prepared.")
    eval_split: str = _argument(
        "test", "Evaluate on the test images, or on held-out training images.", data.EVAL_SPLITS
    )
    validation_examples: int | None = _argument(
        None, "Training images held out by --eval_split=validation; default: 5000, at most a tenth."
    )
    augment: str = _argument(
        "auto",
        "crop_flip for the CIFARs, inception for streamed sets, none for the rest, unless stated.",
        data.AUGMENTATIONS,
    )
    image_size: int | None = _argument(None, "Resize images to this height and width; default: as they are.")
    model: str = _argument("resnet8", f"{', '.join(models.names())}, or a keras.applications name.")
    optimizer: str = _argument("clars", "clars, lars, lamb, sgd, or a Keras optimizer.")
    batch_size: int = _argument(512, "Images of one update.")
    epochs: int = _argument(60, "Passes over the training images.")
    base_learning_rate: float | None = _argument(
        None,
        "Learning rate for batches of base_batch_size; default: by optimizer, see train_config.DEFAULTS.",
    )
    base_batch_size: int = _argument(128, "Batch size that base_learning_rate holds for.")
    scaling: str | None = _argument(
        None, "How the learning rate grows with the batch; default: by optimizer.", tuple(SCALINGS)
    )
    warmup_epochs: float = _argument(0.0, "Epochs of linear warmup.")
    power: float = _argument(2.0, "Power of the polynomial decay of the learning rate.")
    end_learning_rate: float = _argument(1e-4, "Learning rate at the end.")
    momentum: float | None = _argument(None, "Momentum, where the optimizer has one; default: 0.9.")
    weight_decay: float | None = _argument(
        None, "Weight decay of tensors of two or more dimensions; default: by optimizer."
    )
    eta: float | None = _argument(None, "Trust coefficient of clars and lars; default: see train_config.DEFAULTS.")
    max_rate: float | None = _argument(
        None, "Cap on the layer-wise rates of clars and lars, inf for none; default: see train_config.DEFAULTS."
    )
    classic_momentum: bool | None = _argument(
        None, "clars, lars: whether the learning rate goes inside the velocity; default: yes."
    )
    label_smoothing: float = _argument(0.0, "Share of the labels spread evenly over all classes.")
    noise_scale: bool | None = _argument(
        None, "Measure the gradient noise scale; default: with clars, which measures the norms it takes anyway."
    )
    norm_examples: int | None = _argument(
        None, "clars, noise_scale: images of each batch whose gradient norms are measured; default: all, exact."
    )
    micro_batch_size: int | None = _argument(None, "Images in memory at once; default: the whole batch.")
    adversarial: str = _argument(
        "none",
        "conadv: train on adversarial copies as well, made concurrently; disadv: made first; noise: random copies.",
        ADVERSARIAL,
    )
    epsilon: float | None = _argument(None, "adversarial: radius of the L-inf ball, pixels of 255; default: 4.")
    staleness: int | None = _argument(
        None, "conadv: how many updates older the weights are that make the copies; default: 1."
    )
    attack_steps: int | None = _argument(None, "conadv, disadv: gradient steps of the attack; default: 1.")
    step_size: float | None = _argument(
        None, "conadv, disadv: length of such a step, pixels of 255; default: epsilon / attack_steps."
    )
    random_start: float | None = _argument(
        None, "conadv, disadv: probability of a random point of the ball as starting point; default: 0.8."
    )
    targeted: bool | None = _argument(
        None, "conadv, disadv: descend a random wrong class's loss, or ascend the true one's; default: yes."
    )
    augmented_stream: str = _argument(
        "none", "adversarial: train on a third, augmented view of each image as well.", AUGMENTED_STREAMS
    )
    eval_attack: str = _argument(
        "none", "Accuracy of the final model after a one-step attack on the evaluation images.", EVAL_ATTACKS
    )
    eval_epsilon: float | None = _argument(None, "eval_attack: radius, pixels of 255; default: epsilon, or 4.")
    strategy: str = _argument("one_device", "What the batch is spread over; see strategies.py.", strategies.STRATEGIES)
    replicas: int | None = _argument(
        None, "mirrored: GPUs to use, default all; without GPUs, devices to cut the CPU into."
    )
    tpu: str | None = _argument(None, "tpu: its name or address; default: local, the TPU of this host.")
    seed: int = _argument(0, "Seed of initial weights, order, augmentation and dropout.")
    mixed_precision: str = _argument("float32", "Keras dtype policy.", PRECISIONS)
    record_every: int | None = _argument(
        None, "Updates between records of the layer-wise rates; default: a 200th of the run."
    )
    output_dir: str | None = _argument(None, "Directory of the run; default: a new one under runs/.")
    resume: bool = _argument(False, "Continue the run in output_dir; arguments not given are taken from it.")
    stop_after_epoch: int | None = _argument(None, "Stop after this epoch, to be resumed later.")
    verbose: int = _argument(1, "1: progress bar. 2: one line an epoch. 0: silent.")


# Arguments that may differ when a run is resumed: they do not change what is computed.
NOT_OF_THE_RUN = (
    *("data_dir", "download", "output_dir", "resume", "stop_after_epoch", "verbose"),
    *("eval_attack", "eval_epsilon"),
    *("strategy", "replicas", "tpu"),
)


def arguments_of_the_run(config: TrainConfig) -> dict[str, Any]:
    """The arguments that determine the result."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_OF_THE_RUN}


def resolved(config: TrainConfig) -> TrainConfig:
    """The same arguments with names in lower case and the optimizer's defaults filled in, checked.

    Raises:
        ValueError: In one sentence that names the argument and its value.
    """
    _check_ranges(config)
    optimizer = _optimizer_name(config.optimizer)
    layerwise = optimizer in LAYERWISE
    for name in ("eta", "max_rate", "classic_momentum"):
        value = getattr(config, name)
        if value is not None and not layerwise:
            raise ValueError(f"{name} applies to clars and lars; received {name}={value} with optimizer={optimizer!r}.")
    if config.norm_examples is not None and optimizer != "clars" and not config.noise_scale:
        raise ValueError(
            f"norm_examples applies to clars and noise_scale, which measure norms; received "
            f"norm_examples={config.norm_examples} with optimizer={optimizer!r}."
        )
    has_momentum = "momentum" in inspect.signature(_optimizer_class(optimizer)).parameters
    if config.momentum is not None and not has_momentum:
        raise ValueError(
            f"momentum must be left out for an optimizer without it; received momentum={config.momentum} "
            f"with optimizer={optimizer!r}."
        )
    defaults = DEFAULTS.get((optimizer, config.dataset), DEFAULTS.get(optimizer, OTHER_DEFAULTS))

    def either(value: Any, default: Any) -> Any:
        return default if value is None else value

    return dataclasses.replace(
        config,
        model=models.canonical_name(config.model),
        optimizer=optimizer,
        base_learning_rate=either(config.base_learning_rate, defaults.base_learning_rate),
        scaling=either(config.scaling, defaults.scaling),
        weight_decay=either(config.weight_decay, defaults.weight_decay),
        momentum=either(config.momentum, 0.9 if has_momentum else None),
        eta=either(config.eta, defaults.eta),
        max_rate=either(config.max_rate, defaults.max_rate),
        noise_scale=either(config.noise_scale, optimizer == "clars" and config.adversarial == "none"),
        classic_momentum=either(config.classic_momentum, True if layerwise else None),
        **resolved_adversarial(config),
    )


def check_against(config: TrainConfig, dataset: data.Dataset) -> None:
    """Raises ValueError if the batch does not fit the data set."""
    if config.batch_size > dataset.train_size:
        raise ValueError(
            f"batch_size must be at most the {dataset.train_size} training images of {dataset.name}; "
            f"received batch_size={config.batch_size}."
        )


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> WarmupPolynomialDecay:
    """Learning rate scaled to the batch, linear warmup, polynomial decay to the end of the run."""
    rule = SCALINGS[config.scaling]
    peak = rule(config.base_learning_rate, config.batch_size, config.base_batch_size)
    return WarmupPolynomialDecay(
        peak_learning_rate=peak,
        total_steps=steps_per_epoch * config.epochs,
        warmup_steps=min(round(steps_per_epoch * config.warmup_epochs), steps_per_epoch * config.epochs - 1),
        power=config.power,
        end_learning_rate=min(config.end_learning_rate, peak),
    )


def build_optimizer(config: TrainConfig, schedule: Any, model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer of resolved arguments, for the variables of `model`."""
    options = {"learning_rate": schedule}
    if config.momentum is not None:
        options["momentum"] = config.momentum
    if config.optimizer in LAYERWISE:
        options.update(
            eta=config.eta,
            max_rate=None if config.max_rate == math.inf else config.max_rate,
            classic_momentum=config.classic_momentum,
            weight_decay_rate=config.weight_decay,
        )
        if config.optimizer == "clars":
            # Measured or an error: never the fallback that would make it LARS.
            options["gradient_norms"] = "per_example"
        return LAYERWISE[config.optimizer](**options)
    if config.weight_decay is not None:
        options["weight_decay"] = config.weight_decay or None
    optimizer = _optimizer_class(config.optimizer)(**options)
    # The tensors that CLARS and LARS exempt by default, so that a comparison differs in nothing else.
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) < 2])
    return optimizer


def _check_ranges(config: TrainConfig) -> None:
    def require(condition: bool, name: str, must: str) -> None:
        if not condition:
            raise ValueError(f"{name} must be {must}; received {name}={getattr(config, name)!r}.")

    for name in ("batch_size", "epochs", "base_batch_size", "power"):
        require(getattr(config, name) > 0, name, "above 0")
    for name in ("norm_examples", "micro_batch_size"):
        value = getattr(config, name)
        limit = f"from 1 to the batch size, {config.batch_size}"
        require(value is None or 1 <= value <= config.batch_size, name, limit)
    require(config.base_learning_rate is None or config.base_learning_rate > 0, "base_learning_rate", "above 0")
    require(
        0 <= config.warmup_epochs < config.epochs,
        "warmup_epochs",
        f"0 or more, below the {config.epochs} epochs",
    )
    require(config.end_learning_rate >= 0, "end_learning_rate", "0 or more")
    require(config.weight_decay is None or config.weight_decay >= 0, "weight_decay", "0 or more")
    require(config.momentum is None or 0 <= config.momentum < 1, "momentum", "at least 0 and below 1")
    require(config.eta is None or config.eta > 0, "eta", "above 0")
    require(config.max_rate is None or config.max_rate > 0, "max_rate", "above 0")
    require(0 <= config.label_smoothing < 1, "label_smoothing", "at least 0 and below 1")
    require(0 <= config.seed < 2**31, "seed", "from 0 to 2147483647")
    require(config.record_every is None or config.record_every > 0, "record_every", "above 0")
    require(config.verbose in (0, 1, 2), "verbose", "0, 1 or 2")
    stop = config.stop_after_epoch
    require(
        stop is None or 1 <= stop <= config.epochs,
        "stop_after_epoch",
        f"from 1 to the {config.epochs} epochs",
    )
    require(not config.resume or bool(config.output_dir), "output_dir", "given with resume")
    strategies.check(config.strategy, config.replicas)
    shared = config.strategy == "multi_worker"
    require(not shared or bool(config.output_dir), "output_dir", "given with strategy=multi_worker, and shared by all")
    require(config.tpu is None or config.strategy == "tpu", "tpu", "left out except with strategy=tpu")
    for field in dataclasses.fields(config):
        choices, value = field.metadata["choices"], getattr(config, field.name)
        require(not choices or value is None or value in choices, field.name, f"one of {', '.join(choices or ())}")


def _keras_optimizers() -> dict[str, type[keras.optimizers.Optimizer]]:
    # Optimizers of optimizers cannot be made from a learning rate.
    wrappers = ("optimizer", "lossscaleoptimizer", "multioptimizer")
    found = {
        name.lower(): value
        for name, value in vars(keras.optimizers).items()
        if inspect.isclass(value) and issubclass(value, keras.optimizers.Optimizer)
    }
    return {name: value for name, value in found.items() if name not in wrappers}


def _optimizer_class(name: str) -> type[keras.optimizers.Optimizer]:
    return {**_keras_optimizers(), **LAYERWISE}[name]


def _optimizer_name(name: str) -> str:
    known = [*LAYERWISE, *_keras_optimizers()]
    if name.lower() in known:
        return name.lower()
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"optimizer must be one of {', '.join(known)}; received optimizer={name!r}{hint}.")
