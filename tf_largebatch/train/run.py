"""A training run from its arguments to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import pathlib
import platform
import shutil
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch import data, models
from tf_largebatch.callbacks import (
    AdversarialPictures,
    GradientNoiseScale,
    LayerwiseRateRecorder,
    MetricsRecorder,
    RunCheckpoint,
    load_checkpoint,
    plot_curves,
)
from tf_largebatch.callbacks.checkpoint import list_checkpoints
from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.callbacks.noise_scale import readable_noise_scale
from tf_largebatch.distribute import fit as distributed_fit
from tf_largebatch.distribute import strategies
from tf_largebatch.files import replacing, write_json
from tf_largebatch.norms import KERAS, check_supported
from tf_largebatch.train import adversarial, run_directory
from tf_largebatch.train.config import (
    LAYERWISE,
    TrainConfig,
    arguments_of_the_run,
    build_optimizer,
    build_schedule,
    check_against,
    resolved,
)
from tf_largebatch.training import LargeBatchModel
from tf_largebatch.version import __version__

EVALUATION_BATCH_SIZE = 1000
RECORDS_OF_A_RUN = 200


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run reached.

    Attributes:
        accuracy: Share of the evaluation images classified correctly after the last epoch.
        loss: Mean loss of the evaluation images after the last epoch.
        updates: Updates of the weights.
        seconds: Wall time of all epochs, evaluation and the first epoch's compilation included.
        epochs: Completed epochs.
        complete: Whether these are all epochs of the run.
        output_dir: Directory of the run.
        attack: The attack of --eval_attack in words; None without one, or before the end of the run.
        attacked_accuracy: Share of the evaluation images classified correctly after that attack on them.
    """

    accuracy: float
    loss: float
    updates: int
    seconds: float
    epochs: int
    complete: bool
    output_dir: str
    attack: str | None = None
    attacked_accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose arguments have been checked: everything is built, no step is taken.

    Attributes:
        config: The resolved arguments.
        dataset: The data.
        inner: The model to train and to save.
        model: What is fitted: `inner`, or `LargeBatchModel` around it, compiled.
        schedule: The learning rate.
        noise_scale: What measures the gradient noise scale, attached to `model`; None if nobody asked for it.
        first_epoch: Epochs already done.
        output_dir: Directory of the run; one to be thrown away if this is not the first worker.
        is_chief: Whether this is the first worker, or the only process.
    """

    config: TrainConfig
    dataset: data.Dataset
    inner: keras.Model
    model: keras.Model
    schedule: Any
    noise_scale: GradientNoiseScale | None
    first_epoch: int
    output_dir: pathlib.Path
    is_chief: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch."""
        return self.dataset.steps_per_epoch(self.config.batch_size)


def train(config: TrainConfig) -> Result:
    """Trains, and leaves everything of the run in its directory.

    Training drops the last partial batch of each epoch, other images every time; evaluation covers every
    image exactly. With one seed, machine and number of threads a run that was interrupted and resumed ends
    with the weights of one that was not.

    Args:
        config: The arguments; see `TrainConfig`.

    Raises:
        ValueError: For arguments that cannot work, before the directory is made and before any step.
        TrainingDiverged: When the loss is not finite at the end of an epoch.
    """
    return execute(prepare(config))


def prepare(config: TrainConfig) -> Run:
    """Checks the arguments, loads the data, builds the model and restores what is resumed; writes nothing.

    Raises:
        ValueError: In one sentence that names the argument and its value.
    """
    config = resolved(config)
    output_dir = pathlib.Path(config.output_dir or _fresh_directory(config))
    is_chief = strategies.is_chief(config.strategy)
    if config.resume:
        run_directory.check_same_run(output_dir, arguments_of_the_run(config))
    elif is_chief:
        run_directory.check_new(output_dir)
    strategy = strategies.build(config.strategy, config.replicas, config.tpu)
    if config.strategy != "one_device":
        strategies.check_batch(config.batch_size, strategy.num_replicas_in_sync, config.micro_batch_size)
    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        download=config.download,
        eval_split=config.eval_split,
        validation_examples=config.validation_examples,
        augment=config.augment,
        image_size=config.image_size,
    )
    check_against(config, dataset)
    schedule = build_schedule(config, dataset.steps_per_epoch(config.batch_size))
    keras.utils.set_random_seed(config.seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.mixed_precision)
    checkpoints = list_checkpoints(output_dir / run_directory.CHECKPOINTS) if config.resume else []
    if not is_chief:
        output_dir = output_dir / f".{strategies.task_name()}"
    with strategy.scope():
        try:
            inner = models.build(config.model, dataset.image_shape, dataset.num_classes)
            model = _compiled(config, inner, schedule, dataset)
        finally:
            keras.config.set_dtype_policy(policy)
        noise_scale = GradientNoiseScale(output_dir / run_directory.NOISE_SCALES) if config.noise_scale else None
        if noise_scale is not None:  # before its averages are restored
            noise_scale.attach(model)
        first_epoch = load_checkpoint(checkpoints[-1][1], model) if checkpoints else 0
    return Run(config, dataset, inner, model, schedule, noise_scale, first_epoch, output_dir, is_chief)


def execute(run: Run) -> Result:
    """Trains a prepared run; see `train`."""
    if run.is_chief:
        return _execute(run)
    # The other workers do the very same, communication included, and leave nothing.
    quiet = dataclasses.replace(run, config=dataclasses.replace(run.config, verbose=0))
    shutil.rmtree(run.output_dir, ignore_errors=True)  # what this worker left when it was killed
    run.output_dir.mkdir(parents=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return _execute(quiet)
    finally:
        shutil.rmtree(run.output_dir, ignore_errors=True)


def _execute(run: Run) -> Result:
    config, dataset, output_dir = run.config, run.dataset, run.output_dir
    steps = run.steps_per_epoch
    if not config.resume:
        write_json(output_dir / run_directory.CONFIG, _description(run))
    _say(run)
    callbacks: list[keras.callbacks.Callback] = [] if run.noise_scale is None else [run.noise_scale]
    callbacks.append(MetricsRecorder(output_dir / run_directory.METRICS, images_per_epoch=steps * config.batch_size))
    if config.optimizer in LAYERWISE:
        every = config.record_every or -(-steps * config.epochs // RECORDS_OF_A_RUN)
        callbacks.append(LayerwiseRateRecorder(output_dir / run_directory.LAYERWISE_RATES, every))
    if config.adversarial != "none":
        callbacks.append(AdversarialPictures(output_dir / run_directory.PICTURES, *_some_images(config, dataset)))
    # Last: a checkpoint exists only of an epoch whose records are written.
    callbacks.append(RunCheckpoint(output_dir / run_directory.CHECKPOINTS))
    last_epoch = config.stop_after_epoch or config.epochs
    try:
        if run.first_epoch < last_epoch:
            training = dataset.train(config.batch_size, config.seed, run.first_epoch, config.epochs)
            settings = {
                "validation_data": _with_targets(dataset.evaluation(EVALUATION_BATCH_SIZE), config, dataset),
                "initial_epoch": run.first_epoch,
                "epochs": last_epoch,
                "steps_per_epoch": steps,
                "callbacks": callbacks,
                "verbose": config.verbose,
            }
            training = _with_targets(training, config, dataset)
            if config.strategy == "one_device":
                run.model.fit(training, shuffle=False, **settings)
            else:
                distributed_fit.fit(run.model, training, **settings)
    finally:
        # Also of a run that was interrupted or diverged: its curves say why.
        if (output_dir / run_directory.METRICS).exists():
            plot_curves(output_dir, evaluation=config.eval_split, batch_size=config.batch_size)
    return _finish(run)


def _some_images(config: TrainConfig, dataset: data.Dataset) -> tuple[Any, Any, Any]:
    images, labels = next(iter(_with_targets(dataset.evaluation(8), config, dataset)))
    return images, labels, dataset.class_names


def _compiled(config: TrainConfig, inner: keras.Model, schedule: Any, dataset: data.Dataset) -> keras.Model:
    measures = config.optimizer == "clars" or config.noise_scale
    if measures:
        check_supported(inner, KERAS)
    optimizer = build_optimizer(config, schedule, inner)
    model = inner
    # Keras looks for overflow on the first of several replicas only.
    scaled = config.strategy != "one_device" and config.mixed_precision == "mixed_float16"
    if config.adversarial != "none":
        model = adversarial.wrapped(config, inner, dataset)
    elif measures or scaled or config.micro_batch_size is not None:
        model = LargeBatchModel(inner, norm_examples=config.norm_examples, micro_batch_size=config.micro_batch_size)
    if config.label_smoothing:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=config.label_smoothing)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Keras's "auto" compiles with XLA on CPUs too, where that makes convolutions several times slower.
    accelerated = bool(tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"))
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile="auto" if accelerated else False)
    return model


def _with_targets(batches: tf.data.Dataset, config: TrainConfig, dataset: data.Dataset) -> tf.data.Dataset:
    """One-hot labels where the loss smooths them: Keras's sparse loss cannot."""
    if not config.label_smoothing:
        return batches
    return batches.map(lambda image, label: (image, tf.one_hot(label, dataset.num_classes)))


def _finish(run: Run) -> Result:
    config, inner, dataset, output_dir = run.config, run.inner, run.dataset, run.output_dir
    rows = read_metrics(output_dir / run_directory.METRICS)
    last = rows[-1]
    result = Result(
        accuracy=last["val_accuracy"],
        loss=last["val_loss"],
        updates=last["updates"],
        seconds=sum(row["seconds"] for row in rows),
        epochs=last["epoch"],
        complete=last["epoch"] == config.epochs,
        output_dir=str(output_dir),
    )
    if result.complete and config.eval_attack != "none":
        attack, accuracy = adversarial.under_attack(config, inner, dataset, EVALUATION_BATCH_SIZE)
        result = dataclasses.replace(result, attack=attack, attacked_accuracy=accuracy)
    if result.complete:
        # Without the optimizer, whose class a program that only imports keras would not know.
        bare = keras.Model(inner.input, inner.output, name=inner.name)
        with replacing(output_dir / run_directory.FINAL_MODEL) as temporary:
            bare.save(temporary)
        write_json(output_dir / run_directory.RESULT, dataclasses.asdict(result))
    else:
        print(f"stopped after epoch {result.epochs} of {config.epochs}: --resume continues {output_dir}")
    print(
        f"{config.eval_split} accuracy {result.accuracy:.4f} after {result.updates} updates of "
        f"{config.batch_size} images ({result.seconds:.0f} seconds)"
    )
    if result.attacked_accuracy is not None:
        print(f"{config.eval_split} accuracy {result.attacked_accuracy:.4f} after {result.attack}")
    if "noise_scale" in last:
        print(f"your batch is {config.batch_size}; the noise scale is {readable_noise_scale(last['noise_scale'])}")
    return result


def _description(run: Run) -> dict[str, Any]:
    optimizer = getattr(run.model.optimizer, "inner_optimizer", run.model.optimizer)
    trainable = sum(variable.value.shape.num_elements() for variable in run.inner.trainable_variables)
    return {
        "arguments": {
            **arguments_of_the_run(run.config),
            "eval_attack": run.config.eval_attack,
            "eval_epsilon": run.config.eval_epsilon,
        },
        "dataset": run.dataset.describe(),
        "model": {
            "name": run.inner.name,
            "parameters": run.inner.count_params(),
            "trainable_parameters": trainable,
            "output": "logits",
        },
        "optimizer": keras.saving.serialize_keras_object(optimizer),
        "layout": {
            "strategy": run.config.strategy,
            "replicas": run.model.distribute_strategy.num_replicas_in_sync,
        },
        "updates_per_epoch": run.steps_per_epoch,
        "updates": run.steps_per_epoch * run.config.epochs,
        "versions": {
            "tf_largebatch": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
    }


def _say(run: Run) -> None:
    config, dataset, inner = run.config, run.dataset, run.inner
    done = f", {run.first_epoch} done" if run.first_epoch else ""
    print(
        f"{dataset.name}: {dataset.train_size} training and {dataset.eval_size} {dataset.eval_split} images. "
        f"{inner.name}: {inner.count_params()} parameters.\n"
        f"{config.optimizer}: batches of {config.batch_size}, {run.steps_per_epoch} updates in each of "
        f"{config.epochs} epochs{done}, peak learning rate {run.schedule.peak_learning_rate:g}, "
        f"{config.warmup_epochs:g} epochs of warmup.\n"
        f"{adversarial.in_words(config)}"
        f"Output: {run.output_dir}"
    )


def _fresh_directory(config: TrainConfig) -> pathlib.Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    dataset = config.dataset.replace("/", "-").replace(":", "-")
    stem = f"{dataset}-{config.model}-{config.optimizer}-{config.batch_size}-{now}"
    path, count = pathlib.Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = pathlib.Path("runs") / f"{stem}-{count}"
    return path
