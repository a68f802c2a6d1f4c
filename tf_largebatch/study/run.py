"""One training run of a study."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_largebatch import models
from tf_largebatch.callbacks.layerwise_values import layerwise_values
from tf_largebatch.check import reason_of
from tf_largebatch.norms.device import device
from tf_largebatch.optimizers.update import LayerwiseUpdate
from tf_largebatch.study import arrays
from tf_largebatch.study.arms import OPTIMIZERS, make_optimizer
from tf_largebatch.study.config import BASE_BATCH_SIZE, SCALINGS, Study
from tf_largebatch.study.final_measures import FinalMeasures
from tf_largebatch.study.jobs import Job
from tf_largebatch.study.schedules import ShapedSchedule
from tf_largebatch.study.wrapping import wrapped

EVALUATION_BATCH_SIZE = 1000


def train_with_fit(study: Study, job: Job) -> dict[str, Any]:
    """Trains once with Keras's `fit` and returns the row of the run.

    Args:
        study: The study.
        job: The run.

    Returns:
        See `row_of`.
    """
    began = time.monotonic()
    data = load(study)
    keras.utils.clear_session()  # of the run before
    network = make_network(study, data, job.seed)
    schedule = make_schedule(study, job)
    model = compiled(study, job, network, schedule)
    batches = Batches(data.training, job.batch_size, study.augment_of(job.arm), job.seed)
    progress = Progress()
    for first, last in segments(study.updates_of(job.arm), study.evaluations):
        start = time.monotonic()
        batches.select(first, last)
        history = model.fit(batches, epochs=1, shuffle=False, verbose=0).history
        seconds = time.monotonic() - start
        loss = float(history["loss"][-1])
        accuracy = _accuracy(model, data.validation) if np.isfinite(loss) else 0.0
        progress.add(last, loss, accuracy, seconds)
        if study.records_agreement_of(job.arm):
            progress.add_agreements(
                {label: v.gradient_agreement for label, v in layerwise_values(model).items() if v.rate is not None}
            )
        if isinstance(model.optimizer, LayerwiseUpdate):
            adapted = set(model.optimizer.adapted_tensors())
            rates = [rate for label, rate in model.optimizer.layerwise_rates().items() if label in adapted]
            progress.add_rates(rates, model.optimizer.max_rate)
        if not progress.trains:
            break
    found: dict[str, float | None] = {"test_accuracy": 0.0}
    if job.phase == "final" and progress.trains:
        found["test_accuracy"] = _accuracy(model, data.test)
        measures = FinalMeasures(study, data, make_network(study, data, study.seed, "float32"))
        found |= measures.of([keras.ops.convert_to_numpy(v) for v in network.variables])
    return row_of(job, progress, found, device(), began)


@dataclasses.dataclass
class Progress:
    """What a run has reached.

    Attributes:
        curve: Updates, training loss and validation accuracy at each evaluation.
        durations: Seconds of an update before each evaluation.
        agreements: For each adapted tensor ||grad|| / s at each evaluation, where the study records it.
        at_cap: Share of the adapted tensors whose rate is at the cap, at each evaluation, where there is a cap.
    """

    curve: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)
    durations: list[float] = dataclasses.field(default_factory=list)
    agreements: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    at_cap: list[float] = dataclasses.field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether the last loss was finite."""
        return bool(np.isfinite(self.curve[-1][1]))

    def add(self, updates: int, loss: float, accuracy: float, seconds: float) -> None:
        """Adds an evaluation after so many updates, and the seconds of those since the evaluation before."""
        done = self.curve[-1][0] if self.curve else 0
        self.durations.append(seconds / (updates - done))
        self.curve.append((updates, loss, accuracy))

    def add_agreements(self, agreements: Mapping[str, float | None]) -> None:
        """Adds the agreements at an evaluation."""
        for label, value in agreements.items():
            known = value is not None and np.isfinite(value)
            self.agreements.setdefault(label, []).append(float(f"{value:.4g}") if known else None)

    def add_rates(self, rates: Sequence[float], cap: float | None) -> None:
        """Adds the layer-wise rates of the adapted tensors at an evaluation."""
        if rates and cap is not None and np.isfinite(cap):
            self.at_cap.append(float(np.mean(np.asarray(rates) >= 0.9999 * cap)))


def row_of(
    job: Job, progress: Progress, found: Mapping[str, float | None], device_name: str, began: float
) -> dict[str, Any]:
    """Returns the row of a run.

    Args:
        job: The run.
        progress: What it reached.
        found: `test_accuracy` and what `FinalMeasures` returns; used of a final run alone.
        device_name: Where it ran.
        began: When, by `time.monotonic`.

    Returns:
        The job's fields, `status` ("trained" or "diverged": a loss that is not finite), `validation_accuracy` at the
        end (0 if diverged), `best_validation_accuracy`, `curve` (a list of updates, training loss, validation
        accuracy), `seconds_per_update` (median over the segments between evaluations, the first left out, which may
        compile), `seconds` of the whole run, `backend`, `device`, for a final run `found`, and where there are
        any `agreements` and `at_cap`.
    """
    row = {
        "key": job.key,
        "arm": job.arm,
        "batch_size": job.batch_size,
        "phase": job.phase,
        "trial": job.trial,
        "seed": job.seed,
        "point": dict(job.point),
        "status": "trained" if progress.trains else "diverged",
        "validation_accuracy": progress.curve[-1][2],
        "best_validation_accuracy": max(accuracy for _, _, accuracy in progress.curve),
        "curve": progress.curve,
        "seconds_per_update": float(np.median(progress.durations[1:] or progress.durations)),
        "backend": keras.backend.backend(),
        "device": device_name,
    }
    if progress.agreements:
        row["agreements"] = progress.agreements
    if progress.at_cap:
        row["at_cap"] = progress.at_cap
    if job.phase == "final":
        row |= found
    return {**row, "seconds": round(time.monotonic() - began, 2)}


def load(study: Study) -> arrays.Data:
    """Returns the data of a study."""
    return arrays.load(study.dataset, study.data_dir, study.validation_examples, study.image_size)


def check(study: Study, jobs: Iterable[Job]) -> None:
    """Checks that runs can begin: the data are there and whole, and network and optimizers can be made.

    Args:
        study: The study.
        jobs: The runs; of each arm one is tried.

    Raises:
        ValueError: In one sentence.
    """
    data = load(study)
    network = make_network(study, data, study.seed)
    for job in {job.arm: job for job in jobs}.values():
        try:
            compiled(study, job, network, make_schedule(study, job))
        except (TypeError, ValueError) as error:
            raise ValueError(f"arms.{job.arm} cannot be trained with {dict(job.point)}: {reason_of(error)}.") from error


def make_network(study: Study, data: arrays.Data, seed: int, policy: str | None = None) -> keras.Model:
    """Returns the network of a run, with the initial weights of its seed.

    By default its dtype policy is the study's.
    """
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy or study.mixed_precision)
    try:
        return models.build(study.model, data.image_shape, data.num_classes)
    finally:
        keras.config.set_dtype_policy(before)


def make_schedule(study: Study, job: Job) -> ShapedSchedule:
    """Returns the learning rate of a run."""
    arm = study.arm(job.arm)
    updates = study.updates_of(job.arm)
    peak = job.point["learning_rate"] * SCALINGS[arm.scaling](job.batch_size / BASE_BATCH_SIZE)
    return ShapedSchedule(peak, updates, round(arm.warmup * updates), arm.schedule, job.point.get("power", 1.0))


def compiled(
    study: Study,
    job: Job,
    network: keras.Model,
    learning_rate: Any,
    metrics: Sequence[str] | None = ("accuracy",),
) -> keras.Model:
    """Returns the network of a run with its optimizer, wrapped where that needs per-example gradient norms.

    Args:
        study: The study.
        job: The run.
        network: The network.
        learning_rate: A number or a schedule.
        metrics: What Keras reports beside the loss.
    """
    arm = study.arm(job.arm)
    optimizer = make_optimizer(arm.optimizer, job.point, learning_rate, network, job.batch_size)
    if study.records_agreement_of(arm.name):
        optimizer.keep_batch_gradient_norms()
    model = wrapped(
        network,
        job.point,
        OPTIMIZERS[arm.optimizer].measures_norms,
        job.point.get("norm_examples", study.norm_examples),
        study.micro_batch_size_of(job.point, job.batch_size),
        arm.adversarial,
        load(study).value_range,
        study.seed,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # TensorFlow's XLA makes convolutions on a CPU several times slower; JAX always compiles.
    jit = "auto" if keras.backend.backend() == "jax" else False
    model.compile(optimizer, loss, metrics=metrics and list(metrics), jit_compile=jit)
    return model


def segments(updates: int, evaluations: int) -> list[tuple[int, int]]:
    """Returns the updates between two evaluations, as pairs of the first and the one after the last."""
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
        chosen = self.examples(number)
        images = self._images[chosen]
        if self._augment == "crop_flip":
            images = arrays.crop_and_flip(images, self.crops(number))
        return images, self._labels[chosen]

    def examples(self, number: int) -> np.ndarray:
        """Indices of the images of a batch, [batch_size]."""
        return self._permuted(np.arange(number * self._batch_size, (number + 1) * self._batch_size))

    def crops(self, number: int) -> np.ndarray:
        """Returns how the images of a batch are cropped and flipped, [batch_size, 3]; see `arrays.draw_crops`."""
        return arrays.draw_crops(self._batch_size, np.random.default_rng((self._seed, 1, number)))

    def _permuted(self, positions: np.ndarray) -> np.ndarray:
        """Returns the images at positions of the endless sequence of shuffled passes."""
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
