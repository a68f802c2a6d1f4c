"""One training run of a study."""

from __future__ import annotations

import itertools
import time
from typing import Any

import keras
import numpy as np

from tf_largebatch import models
from tf_largebatch.study import arrays
from tf_largebatch.study.arms import OPTIMIZERS, make_optimizer
from tf_largebatch.study.config import Study
from tf_largebatch.study.jobs import Job
from tf_largebatch.study.schedules import ShapedSchedule
from tf_largebatch.training import LargeBatchModel

EVALUATION_BATCH_SIZE = 1000


def train(study: Study, job: Job) -> dict[str, Any]:
    """Trains once and returns the row of the run.

    Args:
        study: The study.
        job: The run.

    Returns:
        The job's fields, `status` ("trained" or "diverged": a loss that is not finite), `validation_accuracy` at the
        end (0 if diverged), `best_validation_accuracy`, `curve` (a list of updates, training loss, validation
        accuracy), `seconds_per_update` (median over the segments between evaluations, the first left out, which
        compiles), `seconds` of the whole run, `backend`, and for a final run `test_accuracy`.
    """
    began = time.monotonic()
    data = arrays.load(study.dataset, study.data_dir, study.validation_examples, study.image_size)
    keras.utils.clear_session()  # of the run before
    keras.utils.set_random_seed(job.seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(study.mixed_precision)
    try:
        network = models.build(study.model, data.image_shape, data.num_classes)
    finally:
        keras.config.set_dtype_policy(policy)
    model = compiled(study, job, network)
    batches = Batches(data.training, job.batch_size, study.augment, job.seed)
    curve: list[tuple[int, float, float]] = []
    durations: list[float] = []
    for first, last in segments(study.updates, study.evaluations):
        start = time.monotonic()
        batches.select(first, last)
        history = model.fit(batches, epochs=1, shuffle=False, verbose=0).history
        durations.append((time.monotonic() - start) / (last - first))
        loss = float(history["loss"][-1])
        accuracy = _accuracy(model, data.validation) if np.isfinite(loss) else 0.0
        curve.append((last, loss, accuracy))
        if not np.isfinite(loss):
            break
    trained = bool(np.isfinite(curve[-1][1]))
    row = {
        "key": job.key,
        "arm": job.arm,
        "batch_size": job.batch_size,
        "phase": job.phase,
        "trial": job.trial,
        "seed": job.seed,
        "point": dict(job.point),
        "status": "trained" if trained else "diverged",
        "validation_accuracy": curve[-1][2],
        "best_validation_accuracy": max(accuracy for _, _, accuracy in curve),
        "curve": curve,
        "seconds_per_update": float(np.median(durations[1:] or durations)),
        "backend": keras.backend.backend(),
    }
    if job.phase == "final":
        row["test_accuracy"] = _accuracy(model, data.test) if trained else 0.0
    return {**row, "seconds": round(time.monotonic() - began, 2)}


def compiled(study: Study, job: Job, network: keras.Model) -> keras.Model:
    """The network of a run with its optimizer, wrapped where that needs per-example gradient norms."""
    arm = next(arm for arm in study.arms if arm.name == job.arm)
    warmup = round(arm.warmup * study.updates)
    schedule = ShapedSchedule(
        job.point["learning_rate"], study.updates, warmup, arm.schedule, job.point.get("power", 1.0)
    )
    optimizer = make_optimizer(arm.optimizer, job.point, schedule, network)
    model = network
    if OPTIMIZERS[arm.optimizer].measures_norms:
        model = LargeBatchModel(network, norm_examples=study.norm_examples)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # TensorFlow's XLA makes convolutions on a CPU several times slower; JAX always compiles.
    jit = "auto" if keras.backend.backend() == "jax" else False
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit)
    return model


def segments(updates: int, evaluations: int) -> list[tuple[int, int]]:
    """The updates between two evaluations, as pairs of the first and the one after the last."""
    ends = [round(updates * k / evaluations) for k in range(evaluations + 1)]
    return list(itertools.pairwise(ends))


class Batches(keras.utils.PyDataset):
    """The batches of a run: each pass over the images has an order of its own, and no batch is smaller than others.

    Batch t depends on the seed and on t alone.

    Args:
        training: Images and labels.
        batch_size: Examples of a batch.
        augment: "none" or "crop_flip".
        seed: Of the orders and the augmentation.
    """

    def __init__(self, training: arrays.Labelled, batch_size: int, augment: str, seed: int) -> None:
        super().__init__()
        self._images, self._labels = training
        self._batch_size, self._augment, self._seed = batch_size, augment, seed
        self._orders: dict[int, np.ndarray] = {}
        self.select(0, 0)

    def select(self, first: int, last: int) -> None:
        """Makes this the batches `first` to `last - 1`."""
        self._first, self._count = first, last - first

    def __len__(self) -> int:
        """Number of selected batches."""
        return self._count

    def __getitem__(self, index: int) -> arrays.Labelled:
        """Images and labels of a selected batch."""
        number = self._first + index
        at = np.arange(number * self._batch_size, (number + 1) * self._batch_size)
        chosen = self._permuted(at)
        images = self._images[chosen]
        if self._augment == "crop_flip":
            images = arrays.crop_and_flip(images, np.random.default_rng((self._seed, 1, number)))
        return images, self._labels[chosen]

    def _permuted(self, positions: np.ndarray) -> np.ndarray:
        """The images at positions of the endless sequence of shuffled passes."""
        n = len(self._labels)
        passes, places = positions // n, positions % n
        result = np.empty_like(positions)
        for number in np.unique(passes):
            if number not in self._orders:
                self._orders[number] = np.random.default_rng((self._seed, 0, int(number))).permutation(n)
            here = passes == number
            result[here] = self._orders[number][places[here]]
        return result


def _accuracy(model: keras.Model, labelled: arrays.Labelled) -> float:
    return float(model.evaluate(*labelled, batch_size=EVALUATION_BATCH_SIZE, verbose=0, return_dict=True)["accuracy"])
