"""Describes a run: in config.json, and in what is printed before and after training."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping
from typing import Any

import keras

from tf_largebatch import pretrained
from tf_largebatch.callbacks.noise_scale import readable_noise_scale
from tf_largebatch.train import adversarial
from tf_largebatch.train.prepare import Run
from tf_largebatch.train.result import Result
from tf_largebatch.version import __version__


def description(run: Run) -> dict[str, Any]:
    """Returns what config.json holds: the arguments, the data, the model, the optimizer, the devices, the versions."""
    optimizer = getattr(run.model.optimizer, "inner_optimizer", run.model.optimizer)
    trainable = sum(math.prod(variable.shape) for variable in run.inner.trainable_variables)
    return {
        "arguments": run.config.stored(),
        "dataset": run.dataset.describe(),
        "model": {
            "name": run.inner.name,
            "parameters": run.inner.count_params(),
            "trainable_parameters": trainable,
            "output": "logits" if pretrained.returns_logits(run.inner) else "probabilities",
        },
        "optimizer": keras.saving.serialize_keras_object(optimizer),
        "layout": {
            "strategy": run.config.run.strategy,
            "replicas": run.layout.replicas,
        },
        "backend": keras.backend.backend(),
        "updates_per_epoch": run.steps_per_epoch,
        "updates": run.steps_per_epoch * run.config.run.epochs,
        "versions": {
            "tf_largebatch": __version__,
            "keras": keras.__version__,
            **{name: version for name in ("tensorflow", "jax") if (version := _version(name))},
            "python": platform.python_version(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def announce(run: Run) -> None:
    """Prints what is about to be trained, on which data, and where the results go."""
    config, dataset, inner = run.config, run.dataset, run.inner
    done = f", {run.first_epoch} done" if run.first_epoch else ""
    print(
        f"{dataset.name}: {dataset.train_size} training and {dataset.eval_size} {dataset.eval_split} images. "
        f"{inner.name}: {inner.count_params()} parameters.\n"
        f"{config.optimizer.name}: batches of {config.run.batch_size}, {run.steps_per_epoch} updates in each of "
        f"{config.run.epochs} epochs{done}, peak learning rate {run.schedule.peak_learning_rate:g}, "
        f"{config.optimizer.warmup_epochs:g} epochs of warmup.\n"
        f"{adversarial.in_words(config.adversarial)}"
        f"Output: {run.output_dir}",
        flush=True,
    )


def conclude(run: Run, result: Result, last: Mapping[str, Any]) -> None:
    """Prints what the run reached.

    Args:
        run: The run.
        result: What it reached.
        last: The last row of its metrics.csv.
    """
    config = run.config
    split = run.dataset.eval_split
    if not result.complete:
        print(f"stopped after epoch {result.epochs} of {config.run.epochs}: --resume continues {run.output_dir}")
    print(
        f"{split} accuracy {result.accuracy:.4f} after {result.updates} updates of "
        f"{config.run.batch_size} images ({result.seconds:.0f} seconds)"
    )
    if result.attacked_accuracy is not None:
        print(f"{split} accuracy {result.attacked_accuracy:.4f} after {result.attack}")
    if "noise_scale" in last:
        print(f"batch size {config.run.batch_size}; gradient noise scale {readable_noise_scale(last['noise_scale'])}")
