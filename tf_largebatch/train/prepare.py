"""Builds everything that a run needs from its arguments; writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import sys
from typing import Any

import keras

from tf_largebatch import data, models, pretrained
from tf_largebatch.callbacks import GradientNoiseScale, load_checkpoint
from tf_largebatch.callbacks.checkpoint import DamagedCheckpoint, list_checkpoints
from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.check import require
from tf_largebatch.conadv.auxiliary_batch_norm import variables_without_decay
from tf_largebatch.data.npz import is_npz
from tf_largebatch.distribute import strategies
from tf_largebatch.norms import KERAS, check_supported
from tf_largebatch.norms.device import device
from tf_largebatch.train import adversarial, final_model, run_directory
from tf_largebatch.train.config import ModelConfig, RunConfig, TrainConfig
from tf_largebatch.train.optimizers import OPTIMIZERS, build_optimizer, build_schedule
from tf_largebatch.train.resolve import resolved
from tf_largebatch.train.result import Result
from tf_largebatch.training import LargeBatchModel

_DETERMINISTIC_XLA = "--xla_gpu_deterministic_ops=true"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose arguments have been checked: everything is built, no step is taken.

    Attributes:
        config: The resolved arguments.
        dataset: The data.
        inner: The network to train and to save.
        model: The model to fit, compiled: `inner`, or a wrapper around it.
        schedule: The learning rate.
        noise_scale: The callback that measures the gradient noise scale, attached to `model`; None without it.
        first_epoch: Epochs already done.
        output_dir: Directory of the run; on workers other than the first, a directory that is removed at the end.
        checkpoints: The checkpoints that were there when the run was prepared.
        finished: The result of a run that is complete already; None of a run that has epochs to go.
        is_chief: Whether this is the first worker, or the only process.
        layout: The devices that share the batches.
    """

    config: TrainConfig
    dataset: data.Dataset
    inner: keras.Model
    model: keras.Model
    schedule: Any
    noise_scale: GradientNoiseScale | None
    first_epoch: int
    output_dir: pathlib.Path
    checkpoints: tuple[pathlib.Path, ...] = ()
    finished: Result | None = None
    is_chief: bool = True
    layout: strategies.Layout = strategies.Layout(1, contextlib.nullcontext)  # noqa: RUF009 (frozen)

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch."""
        return self.dataset.steps_per_epoch(self.config.run.batch_size)


def prepare(config: TrainConfig) -> Run:
    """Checks the arguments, loads the data, builds the model and restores what is resumed; writes nothing.

    Raises:
        ValueError: In one sentence that names the argument and its value.
    """
    config = resolved(config)
    settings = config.run
    if settings.deterministic:
        make_deterministic()
    strategies.join(settings.strategy)
    output_dir = pathlib.Path(settings.output_dir or _fresh_directory(config))
    is_chief = strategies.is_chief(settings.strategy)
    with strategies.refusing_together(settings.strategy):
        _check_directory(config, output_dir, is_chief)
    strategies.agree(settings.strategy, config.of_the_run(), "give every worker the same flags")
    layout = strategies.layout(settings.strategy, settings.replicas, settings.tpu)
    if settings.strategy != "one_device":
        # Micro-batches are parts of a device's share, or of the whole batch where one program computes it.
        size = settings.micro_batch_size
        parts = size if isinstance(size, int) and not layout.whole_batches else None
        strategies.check_batch(settings.batch_size, layout.replicas, parts)
    with strategies.refusing_together(settings.strategy):
        dataset = _loaded(config)
    steps = dataset.steps_per_epoch(settings.batch_size)
    schedule = build_schedule(config.optimizer, settings.batch_size, settings.epochs, steps)
    written = output_dir if is_chief else output_dir / f".{strategies.task_name()}"
    noise_scale = GradientNoiseScale(written / run_directory.NOISE_SCALES) if settings.noise_scale else None
    keras.utils.set_random_seed(settings.seed)
    with layout.making():
        inner, model = _built(config, dataset, schedule, layout)
        if noise_scale is not None:  # before its averages are restored
            noise_scale.attach(model)
        finished = Result.read(output_dir) if settings.resume else None
        checkpoints = checkpoints_of(output_dir) if settings.resume else ()
        if finished is None:
            # Before the first assignment, in which workers of JAX compare the values.
            newest = checkpoints[-1].name if checkpoints else None
            strategies.agree(settings.strategy, {"newest checkpoint": newest}, "give them an output_dir on one disk")
        first_epoch = _restored(checkpoints, model) if finished is None else finished.epochs
        _check_records(output_dir, first_epoch)
        if finished is not None and needs_evaluation(config, finished):
            _load_trained(output_dir, checkpoints, model, inner)
    return Run(
        config,
        dataset,
        inner,
        model,
        schedule,
        noise_scale,
        first_epoch,
        written,
        checkpoints,
        finished,
        is_chief,
        layout,
    )


def _check_directory(config: TrainConfig, output_dir: pathlib.Path, is_chief: bool) -> None:
    """Raises unless the run may start or continue in the directory."""
    if is_chief:
        run_directory.check_writable(output_dir)
        run_directory.check_free(output_dir)
    if config.run.resume:
        run_directory.check_same_run(output_dir, config.of_the_run())
        read_metrics(output_dir / run_directory.METRICS)
    elif is_chief:
        run_directory.check_new(output_dir)


def _check_records(output_dir: pathlib.Path, epochs: int) -> None:
    """Raises unless metrics.csv has a row of each epoch that is done: rows are written before checkpoints."""
    path = output_dir / run_directory.METRICS
    found = [row["epoch"] for row in read_metrics(path)] if epochs else []
    missing = [epoch for epoch in range(1, epochs + 1) if epoch not in found]
    if missing:
        raise ValueError(
            f"{path} must have a row for each of the {epochs} epochs done, and epoch {missing[0]} has none: restore "
            "the file, or train again in another directory."
        )


def _loaded(config: TrainConfig) -> data.Dataset:
    """Loads the data; raises if a batch is larger."""
    pixels = pretrained.takes_pixels(config.model.name, config.model.weights)
    dataset = data.load(**vars(config.data), standardize=not pixels)
    require(
        config.run.batch_size <= dataset.train_size,
        "batch_size",
        config.run.batch_size,
        f"at most the {dataset.train_size} training images of {dataset.name}",
    )
    return dataset


def needs_evaluation(config: TrainConfig, finished: Result) -> bool:
    """Returns whether a finished run lacks the evaluation that --eval_attack asks for."""
    return config.adversarial.eval_attack != "none" and finished.attack != adversarial.attack_in_words(
        config.adversarial
    )


def make_deterministic() -> None:
    """Makes the operations of this process give the same bits in every run; before a device is used.

    Fast sums on GPUs add in an order that differs from run to run.
    """
    if keras.backend.backend() == "jax":
        flags = os.environ.get("XLA_FLAGS", "")
        if _DETERMINISTIC_XLA not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC_XLA}".strip()
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def has_soft_labels(config: RunConfig) -> bool:
    """Returns whether the loss takes the share of each class.

    Keras's sparse loss takes neither smoothed nor mixed labels.
    """
    return bool(config.label_smoothing or config.mixup)


def average_weights(model: keras.Model) -> None:
    """Puts the moving averages of the weights in their place, where the optimizer keeps them, as `fit` does in the end.

    Args:
        model: A compiled model whose optimizer is built.
    """
    model.optimizer.finalize_variable_values(model.trainable_variables)


def _built(
    config: TrainConfig, dataset: data.Dataset, schedule: Any, layout: strategies.Layout
) -> tuple[keras.Model, keras.Model]:
    """Builds the network, and the compiled model to fit."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.model.mixed_precision)
    try:
        inner = _network(config.model, dataset)
        return inner, _compiled(config, inner, dataset, schedule, layout)
    finally:
        keras.config.set_dtype_policy(policy)


def _network(config: ModelConfig, dataset: data.Dataset) -> keras.Model:
    shape, classes = dataset.image_shape, dataset.num_classes
    if pretrained.is_file(config.name):
        return pretrained.from_file(config.name, shape, classes)
    if config.weights is not None:
        return pretrained.with_weights(config.name, config.weights, shape, classes, dataset.pixel_scale)
    return models.build(config.name, shape, classes)


def _compiled(
    config: TrainConfig, inner: keras.Model, dataset: data.Dataset, schedule: Any, layout: strategies.Layout
) -> keras.Model:
    settings = config.run
    measures = OPTIMIZERS[config.optimizer.name].reads_norms or settings.noise_scale
    if measures:
        check_supported(inner, KERAS)
    # Keras detects an overflow on the first of several replicas only.
    scaled = (
        settings.strategy != "one_device"
        and not layout.whole_batches
        and config.model.mixed_precision == "mixed_float16"
    )
    options: dict[str, Any] = {"norm_examples": settings.norm_examples, "micro_batch_size": settings.micro_batch_size}
    model = inner
    if config.adversarial.kind != "none":
        model = adversarial.wrapped(config.adversarial, inner, dataset, seed=settings.seed, **options)
    elif measures or scaled or settings.micro_batch_size is not None:
        model = LargeBatchModel(inner, **options)
    logits = pretrained.returns_logits(inner)
    if has_soft_labels(settings):
        loss = keras.losses.CategoricalCrossentropy(from_logits=logits, label_smoothing=settings.label_smoothing)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    # Of the wrapper, whose auxiliary batch norms are trained too.
    optimizer = build_optimizer(config.optimizer, schedule, variables_without_decay(model))
    # Keras's "auto" compiles with XLA on CPUs too, where that makes TensorFlow's convolutions several times slower.
    compiled = keras.backend.backend() == "jax" or device() != "cpu"
    # Batches of evaluation are filled up with images of weight 0 where one program computes them on several devices.
    metrics = {"weighted_metrics" if layout.whole_batches else "metrics": ["accuracy"]}
    model.compile(optimizer, loss, **metrics, jit_compile="auto" if compiled else False)
    return model


def checkpoints_of(output_dir: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the checkpoints of a run, oldest first."""
    return tuple(path for _, path in list_checkpoints(output_dir / run_directory.CHECKPOINTS))


def _restored(checkpoints: tuple[pathlib.Path, ...], model: keras.Model) -> int:
    """Restores the newest checkpoint that is not damaged; returns the epochs done."""
    for path in reversed(checkpoints):
        try:
            epochs = load_checkpoint(path, model)
        except DamagedCheckpoint:
            print(f"warning: {path} is damaged.", file=sys.stderr)
            continue
        if path != checkpoints[-1]:
            print(f"warning: the run continues from {path.name}, an older checkpoint.", file=sys.stderr)
        return epochs
    if checkpoints:
        where = checkpoints[0].parent
        raise ValueError(f"every checkpoint in {where} is damaged: remove them to train again from the first epoch.")
    return 0


def _load_trained(
    output_dir: pathlib.Path, checkpoints: tuple[pathlib.Path, ...], model: keras.Model, inner: keras.Model
) -> None:
    """Loads the weights of a finished run: those of final.keras, else of its last checkpoint."""
    path = output_dir / run_directory.FINAL_MODEL
    if not path.is_file():
        if not checkpoints:
            raise ValueError(
                f"output_dir must hold {run_directory.FINAL_MODEL} or a checkpoint for eval_attack; received "
                f"output_dir={str(output_dir)!r}, which holds neither."
            )
        load_checkpoint(checkpoints[-1], model)
        average_weights(model)
        return
    trained, _ = final_model.load(path)
    inner.set_weights(trained.get_weights())


def _fresh_directory(config: TrainConfig) -> pathlib.Path:
    """Names a directory that no other run has, not even one that is started in the same second."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    dataset = pathlib.Path(config.data.name).stem if is_npz(config.data.name) else config.data.name
    dataset = dataset.replace("/", "-").replace(":", "-")
    network = pathlib.Path(config.model.name).stem
    stem = f"{dataset}-{network}-{config.optimizer.name}-{config.run.batch_size}-{now}-{os.getpid()}"
    path, count = pathlib.Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = pathlib.Path("runs") / f"{stem}-{count}"
    return path
