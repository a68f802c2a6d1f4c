"""Trains a prepared run and leaves everything of it in its directory."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import shutil
from typing import Any

import keras

from tf_largebatch import data, pretrained
from tf_largebatch.callbacks import (
    AdversarialPictures,
    LayerwiseRateRecorder,
    LayerwiseTensorBoard,
    MetricsRecorder,
    MetricsTensorBoard,
    RunCheckpoint,
    TrainingDiverged,
    plot_curves,
)
from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.data.tfds import naming_damaged_records
from tf_largebatch.files import write_json
from tf_largebatch.train import adversarial, final_model, report, run_directory
from tf_largebatch.train.config import TrainConfig
from tf_largebatch.train.optimizers import OPTIMIZERS
from tf_largebatch.train.prepare import Run, average_weights, checkpoints_of, has_soft_labels, needs_evaluation, prepare
from tf_largebatch.train.progress import Progress
from tf_largebatch.train.result import Result
from tf_largebatch.train.save_best import SaveBest
from tf_largebatch.training import processes
from tf_largebatch.training.sized_step import explaining_out_of_memory

EVALUATION_BATCH_SIZE = 1000
RECORDS_OF_A_RUN = 200
PICTURED_IMAGES = 8


def train(config: TrainConfig) -> Result:
    """Trains, and leaves everything of the run in its directory.

    Training drops the last partial batch of each epoch, with other images in every epoch; evaluation uses every image
    once. With the same seed, machine and number of threads, a run that was interrupted and resumed ends with the
    weights of one that was not.

    Args:
        config: The arguments; see `TrainConfig`.

    Raises:
        ValueError: For arguments that cannot work, before the directory is made and before any step.
        TrainingDiverged: When the loss is not finite at the end of an epoch.
    """
    return execute(prepare(config))


def execute(run: Run) -> Result:
    """Trains a prepared run; see `train`."""
    with run.layout.training(), processes.explaining_lost_processes():
        return _execute_in_layout(run)


def _execute_in_layout(run: Run) -> Result:
    if run.is_chief:
        with run_directory.held(run.output_dir):
            _check_unchanged(run)
            return _execute(run)
    # The other workers take the same steps, communication included, and leave nothing.
    quiet = dataclasses.replace(run, config=run.config.with_flags(verbose=0))
    shutil.rmtree(run.output_dir, ignore_errors=True)  # what this worker left when it was killed
    run.output_dir.mkdir(parents=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return _execute(quiet)
    finally:
        shutil.rmtree(run.output_dir, ignore_errors=True)


def _check_unchanged(run: Run) -> None:
    """Refuses a directory that another run has used since this one was prepared."""
    if not run.config.run.resume:
        # Other workers have made their own directories in it by now.
        if run.config.run.strategy != "multi_worker":
            run_directory.check_new(run.output_dir)
    elif (checkpoints_of(run.output_dir), Result.read(run.output_dir)) != (run.checkpoints, run.finished):
        raise run_directory.DirectoryRefused(
            f"output_dir={str(run.output_dir)!r} was changed by another run in the meantime: resume again."
        )


def _execute(run: Run) -> Result:
    if run.finished is not None:
        return _finish(run, run.finished)
    config, output_dir = run.config, run.output_dir
    if not config.run.resume:
        write_json(output_dir / run_directory.CONFIG, report.description(run))
    report.announce(run)
    try:
        if run.first_epoch < (config.run.stop_after_epoch or config.run.epochs):
            _fit(run)
        else:
            # The checkpoint of the last epoch has the weights that the averages are taken of.
            average_weights(run.model)
    finally:
        # Also for a run that was interrupted or diverged: its curves show why.
        if (output_dir / run_directory.METRICS).exists():
            plot_curves(output_dir, evaluation=run.dataset.eval_split, batch_size=config.run.batch_size)
    return _finish(run, _reached(run))


def _fit(run: Run) -> None:
    config, dataset = run.config.run, run.dataset

    def targets(batches: Any) -> Any:
        return data.with_one_hot_labels(batches, dataset.num_classes) if has_soft_labels(config) else batches

    epochs = (config.batch_size, config.seed, run.first_epoch, config.epochs)
    training = dataset.mixed(*epochs, config.mixup) if config.mixup else targets(dataset.train(*epochs))
    validation = targets(dataset.evaluation(EVALUATION_BATCH_SIZE))
    if run.layout.whole_batches:
        replicas, part = run.layout.replicas, (run.layout.process, run.layout.processes)
        divisible = max(EVALUATION_BATCH_SIZE // replicas, 1) * replicas
        validation = data.filled_up(targets(dataset.evaluation(divisible)), replicas, dataset.eval_size)
        training, validation = data.part(training, *part), data.part(validation, *part)
    settings = {
        "validation_data": validation,
        "initial_epoch": run.first_epoch,
        "epochs": config.stop_after_epoch or config.epochs,
        "steps_per_epoch": run.steps_per_epoch,
        "callbacks": _callbacks(run, *next(iter(targets(dataset.evaluation(PICTURED_IMAGES))))),
        "verbose": 0,
    }
    parts = 1 if run.layout.whole_batches else run.layout.replicas
    with (
        explaining_out_of_memory(run.model, -(-config.batch_size // parts)),
        naming_damaged_records(dataset.name, run.config.data.data_dir),
    ):
        if config.strategy == "one_device" or run.layout.whole_batches:
            run.model.fit(training, shuffle=False, **settings)
        else:
            from tf_largebatch.distribute.fit import fit

            fit(run.model, training, **settings)


def _callbacks(run: Run, images: Any, labels: Any) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that record the run, in order; the images and labels are for pictures."""
    config, output_dir, steps = run.config, run.output_dir, run.steps_per_epoch
    found: list[keras.callbacks.Callback] = []
    if config.run.save_best is not None:
        # Before the averages leave the model: it saves what was evaluated.
        found.append(SaveBest(output_dir, config.run.save_best, run.inner, run.dataset))
    if config.optimizer.ema_momentum is not None:
        found.append(keras.callbacks.SwapEMAWeights())
    if run.noise_scale is not None:
        found.append(run.noise_scale)
    found.append(MetricsRecorder(output_dir / run_directory.METRICS, images_per_epoch=steps * config.run.batch_size))
    if OPTIMIZERS[config.optimizer.name].layerwise:
        every = config.run.record_every or -(-steps * config.run.epochs // RECORDS_OF_A_RUN)
        found.append(LayerwiseRateRecorder(output_dir / run_directory.LAYERWISE_RATES, every))
    if config.adversarial.kind != "none":
        path = output_dir / run_directory.PICTURES
        found.append(AdversarialPictures(path, images, labels, run.dataset.class_names))
    if config.run.tensorboard:
        found.append(MetricsTensorBoard(output_dir / run_directory.TENSORBOARD))
        if OPTIMIZERS[config.optimizer.name].layerwise:
            found.append(LayerwiseTensorBoard(output_dir / run_directory.TENSORBOARD))
    if config.run.verbose:
        last_epoch = config.run.stop_after_epoch or config.run.epochs
        found.append(Progress(config.run.epochs, steps, last_epoch, rewrite=config.run.verbose == 1))
    # Last: there is a checkpoint only of epochs whose records are written.
    return [*found, RunCheckpoint(output_dir / run_directory.CHECKPOINTS)]


def _reached(run: Run) -> Result:
    """Reads the result of the run from its metrics.csv.

    Raises:
        TrainingDiverged: If the run is complete and its last loss on the evaluation images is not finite.
    """
    rows = read_metrics(run.output_dir / run_directory.METRICS)
    last = rows[-1]
    complete = last["epoch"] == run.config.run.epochs
    if complete and not math.isfinite(last["val_loss"]):
        raise TrainingDiverged(
            f"the {run.dataset.eval_split} loss is {last['val_loss']} after the last epoch: lower "
            "base_learning_rate, or add warmup_epochs."
        )
    return Result(
        accuracy=last["val_accuracy"],
        loss=last["val_loss"],
        updates=last["updates"],
        seconds=sum(row["seconds"] for row in rows),
        epochs=last["epoch"],
        complete=complete,
        output_dir=str(run.output_dir),
    )


def _finish(run: Run, result: Result) -> Result:
    """Evaluates under attack, saves the final model and the result unless that is done already, and prints."""
    config = run.config
    if result.complete and needs_evaluation(config, result):
        accuracy = adversarial.robust_accuracy(
            config.adversarial, run.inner, run.dataset, EVALUATION_BATCH_SIZE, config.run.seed
        )
        attack = adversarial.attack_in_words(config.adversarial)
        result = dataclasses.replace(result, attack=attack, attacked_accuracy=accuracy)
    if result.complete and run.finished is None:
        final_model.save(
            run.output_dir / run_directory.FINAL_MODEL, run.inner, run.dataset, pretrained.returns_logits(run.inner)
        )
    if result.complete and result != run.finished:
        result.write(run.output_dir)
    rows = read_metrics(run.output_dir / run_directory.METRICS)
    report.conclude(run, result, rows[-1] if rows else {})
    return result
