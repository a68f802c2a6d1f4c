"""The runs of a study on JAX: one compiled program for all trials of an optimizer, on data that stay on the device.

`fit` compiles a program for every run and copies every batch. Here the hyper-parameters of a point are inputs of the
program, which scans over the updates between two evaluations. The updates are those of `study.run.train_with_fit`: the
same weights, batches, crops and learning rates.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp

from tf_largebatch.core.paths import variable_labels
from tf_largebatch.keras_internals import trained_variables
from tf_largebatch.study import arrays, run
from tf_largebatch.study.arms import OPTIMIZERS
from tf_largebatch.study.config import Study
from tf_largebatch.study.jobs import Job

# Images of an evaluation at a time.
EVALUATION_BATCH_SIZE = 5000

# Optimizer, batch size, hyper-parameters that are compiled in, updates of a segment.
Key = tuple[str, int, tuple[tuple[str, Any], ...], int]
State = tuple[list[Any], list[Any], list[Any]]


_kept: list[StudyRuns] = []


def runs_of(study: Study) -> StudyRuns:
    """The runs of a study; those of the last study are kept, with their programs."""
    if not _kept or _kept[0].study != study:
        _kept[:] = [StudyRuns(study)]
    return _kept[0]


class StudyRuns:
    """Trains the runs of one study.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        data = arrays.load(study.dataset, study.data_dir, study.validation_examples, study.image_size)
        self._data = data
        self._training = jax.device_put(data.training)
        self._validation, self._test = (
            [jax.device_put(part) for part in _parts(labelled)] for labelled in (data.validation, data.test)
        )
        self._segments = run.segments(study.updates, study.evaluations)
        self._programs: dict[Key, concurrent.futures.Future[Any]] = {}
        self._beginnings: dict[Key, list[Any]] = {}
        self._agreements: dict[Key, Callable[[State], dict[str, float | None]]] = {}
        self._weights: dict[int, tuple[list[Any], list[Any]]] = {}
        self._batches: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._compilers = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        with _on_cpu():
            keras.utils.clear_session()
            self._network = run.make_network(study, data, study.seed)
        self._evaluations: dict[int, concurrent.futures.Future[Any]] = {}

    def prepare(self, jobs: Iterable[Job]) -> None:
        """Traces the programs of these runs and starts to compile them, each in a thread of its own."""
        for images, labels in (*self._validation, *self._test):
            if len(labels) not in self._evaluations:
                weights = self._initial_weights(self.study.seed)
                lowered = jax.jit(self._correct).lower(*weights, images, labels)
                self._evaluations[len(labels)] = self._compilers.submit(lowered.compile)
        for job in jobs:
            for first, last in self._segments:
                self._program(job, last - first)

    def train(self, job: Job) -> dict[str, Any]:
        """Trains once and returns the row of the run, see `study.run.row_of`.

        `seconds` and `seconds_per_update` leave out compilation, which many runs share.
        """
        study, row = self.study, OPTIMIZERS[self.study.arm(job.arm).optimizer]
        self.prepare([job])
        programs = [self._program(job, last - first).result() for first, last in self._segments]
        concurrent.futures.wait(self._evaluations.values())
        began = time.monotonic()
        order, crops = self._order(job)
        with _on_cpu():
            rates = np.asarray(run.make_schedule(study, job)(np.arange(study.updates)), np.float32)
        hyper = {name: np.float32(value(job.point)) for name, value in row.traced.items()}
        trainable, others = self._initial_weights(job.seed)
        state: State = (trainable, others, self._beginnings[self._key(job, 0)])
        progress = run.Progress()
        for program, (first, last) in zip(programs, self._segments, strict=True):
            start = time.monotonic()
            state, loss = program(state, hyper, rates, order, crops, np.int32(first), *self._training)
            loss = float(loss)
            seconds = time.monotonic() - start
            accuracy = self._accuracy(state, self._validation) if np.isfinite(loss) else 0.0
            progress.add(last, loss, accuracy, seconds)
            if study.records_agreement_of(job.arm):
                progress.add_agreements(self._agreements[self._key(job, 0)](state))
            if not progress.trains:
                break
        tested = job.phase == "final" and progress.trains
        test = self._accuracy(state, self._test) if tested else 0.0
        return run.row_of(job, progress, test, jax.devices()[0].device_kind, began)

    def _key(self, job: Job, length: int) -> Key:
        name = self.study.arm(job.arm).optimizer
        compiled_in = OPTIMIZERS[name].compiled_in
        return name, job.batch_size, tuple(sorted((k, v) for k, v in job.point.items() if k in compiled_in)), length

    def _program(self, job: Job, length: int) -> concurrent.futures.Future[Any]:
        """The program of the updates between two evaluations."""
        key = self._key(job, length)
        if key not in self._programs:
            try:
                program = self._compilers.submit(self._lowered(job, length).compile)
            except Exception as error:  # belongs to the runs of this program alone
                program = concurrent.futures.Future()
                program.set_exception(error)
            self._programs[key] = program
        return self._programs[key]

    def _lowered(self, job: Job, length: int) -> Any:
        study, row = self.study, OPTIMIZERS[self.study.arm(job.arm).optimizer]
        with _on_cpu():
            model = run.compiled(study, job, self._network, learning_rate=1.0, metrics=None)
            optimizer = model.optimizer
            optimizer.build(model.trainable_variables)
            metrics = [np.asarray(v) for v in model.metrics_variables]
        learning_rate = [v is optimizer.learning_rate for v in optimizer.variables].index(True)

        def segment(
            state: State,
            hyper: Mapping[str, Any],
            rates: Any,
            order: Any,
            crops: Any,
            first: Any,
            images: Any,
            labels: Any,
        ) -> tuple[State, Any]:
            def update(carry: Any, number: Any) -> tuple[Any, Any]:
                trainable, others, slots, metrics = carry
                slots = [*slots]
                slots[learning_rate] = rates[number]
                chosen = order[number]
                batch = images[chosen]
                if study.augment == "crop_flip":
                    batch = crop_and_flip(batch, crops[number])
                logs, carry = model.train_step((trainable, others, slots, metrics), (batch, labels[chosen]))
                return tuple(map(list, carry)), logs["loss"]

            with _attributes(optimizer, hyper):
                carry, losses = lax.scan(update, (*state, list(metrics)), first + jnp.arange(length))
            return carry[:3], losses[-1]  # the mean over the segment, as `fit` reports it

        if study.records_agreement_of(job.arm):
            self._agreements[self._key(job, 0)] = _reader_of_agreements(optimizer)
        slots = jax.device_put([np.asarray(v) for v in optimizer.variables])
        self._beginnings[self._key(job, 0)] = slots
        example = (*self._initial_weights(study.seed), slots)
        hyper = {name: np.float32(0) for name in row.traced}
        rates = np.zeros(study.updates, np.float32)
        return jax.jit(segment).lower(example, hyper, rates, *self._order(job), np.int32(0), *self._training)

    def _initial_weights(self, seed: int) -> tuple[list[Any], list[Any]]:
        """Trainable and other variables of the network of a seed."""
        if seed not in self._weights:
            network = self._network
            if seed != self.study.seed:
                with _on_cpu():
                    network = run.make_network(self.study, self._data, seed)
            lists = network.trainable_variables, network.non_trainable_variables
            self._weights[seed] = jax.device_put(tuple([np.asarray(v) for v in variables] for variables in lists))
        return self._weights[seed]

    def _order(self, job: Job) -> tuple[Any, Any]:
        """Indices of the examples of all batches, [updates, batch_size], and how they are cropped."""
        key = job.batch_size, job.seed
        if key not in self._batches:
            batches = run.Batches(self._data.training, job.batch_size, self.study.augment, job.seed)
            numbers = range(self.study.updates)
            order = np.stack([batches.examples(number) for number in numbers]).astype(np.int32)
            crops = np.zeros((self.study.updates, 0, 3), np.int8)
            if self.study.augment == "crop_flip":
                crops = np.stack([batches.crops(number) for number in numbers])
            self._batches[key] = jax.device_put((order, crops))
        return self._batches[key]

    def _correct(self, trainable: list[Any], others: list[Any], images: Any, labels: Any) -> Any:
        logits, _ = self._network.stateless_call(trainable, others, images, training=False)
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    def _accuracy(self, state: State, parts: list[tuple[Any, Any]]) -> float:
        correct = [self._evaluations[len(y)].result()(*state[:2], x, y) for x, y in parts]
        return float(sum(correct)) / sum(len(y) for _, y in parts)


def _parts(labelled: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """Images and labels, `EVALUATION_BATCH_SIZE` at a time."""
    images, labels = labelled
    starts = range(0, len(labels), EVALUATION_BATCH_SIZE)
    return [tuple(array[start : start + EVALUATION_BATCH_SIZE] for array in (images, labels)) for start in starts]


def _reader_of_agreements(optimizer: Any) -> Callable[[State], dict[str, float | None]]:
    """Returns a function that reads ||grad|| / s of every adapted tensor from a state."""
    labels, adapted = variable_labels(trained_variables(optimizer)), set(optimizer.adapted_tensors())
    packed = optimizer._packed_batch_norms, optimizer._packed_norms
    places = [[v is wanted for v in optimizer.variables].index(True) for wanted in packed]

    def read(state: State) -> dict[str, float | None]:
        pairs = zip(labels, *(np.asarray(state[2][place]).tolist() for place in places), strict=True)
        return {label: whole / s if s > 0 else None for label, whole, s in pairs if label in adapted}

    return read


def crop_and_flip(images: Any, crops: Any) -> Any:
    """`study.arrays.crop_and_flip` on the device."""
    margin = arrays.CROP_MARGIN
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    corners = crops.astype(jnp.int32)
    cut = jax.vmap(lambda image, crop: lax.dynamic_slice(image, (crop[0], crop[1], 0), images.shape[1:]))
    cropped = cut(padded, corners)
    return jnp.where(corners[:, 2, None, None, None] == 1, cropped[:, :, ::-1], cropped)


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Runs Keras's small operations on the CPU: on an accelerator each, such as an initial value, is compiled first."""
    return jax.default_device(jax.devices("cpu")[0])


@contextlib.contextmanager
def _attributes(thing: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Gives an object other values of attributes while a step is traced."""
    saved = {name: getattr(thing, name) for name in values}
    try:
        for name, value in values.items():
            setattr(thing, name, value)
        yield
    finally:
        for name, value in saved.items():
            setattr(thing, name, value)
