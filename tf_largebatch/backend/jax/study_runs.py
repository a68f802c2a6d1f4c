"""The runs of a study on JAX: one compiled program for all trials of an optimizer, on data that stay on the device.

`fit` compiles a program for every run and copies every batch. Here the hyper-parameters of a point are inputs of the
program, which scans over the updates between two evaluations. The updates are those of `study.run.train_with_fit`: the
same weights, batches, crops and learning rates.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp

from tf_largebatch.conadv import ConAdvModel
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.keras_internals import trained_variables
from tf_largebatch.optimizers.update import LayerwiseUpdate
from tf_largebatch.study import arrays, run
from tf_largebatch.study.arms import OPTIMIZERS
from tf_largebatch.study.config import Study
from tf_largebatch.study.final_measures import FinalMeasures
from tf_largebatch.study.jobs import Job

# Images of an evaluation at a time.
EVALUATION_BATCH_SIZE = 5000

# What a program is made for: the optimizer first, then all that is compiled in.
Setting = tuple[Any, ...]
State = tuple[list[Any], list[Any], list[Any]]


_kept: list[StudyRuns] = []


def runs_of(study: Study) -> StudyRuns:
    """Returns the runs of a study; those of the last study are kept, with their programs."""
    if not _kept or _kept[0].study != study:
        _kept[:] = [StudyRuns(study)]
    return _kept[0]


@dataclasses.dataclass(frozen=True)
class _Beginning:
    """The state of a setting before its first update.

    Attributes:
        model: The model that is trained; its network's variables are shared with other settings.
        slots: Values of the optimizer's variables.
        places: Where the values of the network's trainable and other variables are in the lists of a state.
        reads_agreement: Reads ||grad|| / s of every adapted tensor from a state, where the study records it.
        reads_rates: Reads the layer-wise rates of the adapted tensors, where there are any.
    """

    model: Any
    slots: list[Any]
    places: tuple[list[int], list[int]]
    reads_agreement: Callable[[State], dict[str, float | None]] | None
    reads_rates: Callable[[State], list[float]] | None

    def network_values(self, state: State) -> tuple[list[Any], list[Any]]:
        """Returns the values of the network's own variables, out of a state."""
        trainable, others = ([values[k] for k in ks] for values, ks in zip(state[:2], self.places, strict=True))
        return trainable, others


class StudyRuns:
    """Trains the runs of one study.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        data = self._data = run.load(study)
        self._training = jax.device_put(data.training)
        self._validation, self._test = (
            [jax.device_put(part) for part in _parts(labelled)] for labelled in (data.validation, data.test)
        )
        self._programs: dict[tuple[Setting, int], concurrent.futures.Future[Any]] = {}
        self._beginnings: dict[Setting, _Beginning] = {}
        self._weights: dict[int, tuple[list[Any], list[Any]]] = {}
        self._batches: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._compilers = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        with _on_cpu():
            keras.utils.clear_session()
            self._network = run.make_network(study, data, study.seed)
            self._measures = FinalMeasures(study, data, run.make_network(study, data, study.seed, "float32"))
        self._evaluations: dict[int, concurrent.futures.Future[Any]] = {}

    def prepare(self, jobs: Iterable[Job]) -> None:
        """Traces the programs of these runs and starts to compile them, each in a thread of its own."""
        for images, labels in (*self._validation, *self._test):
            if len(labels) not in self._evaluations:
                weights = self._initial_weights(self.study.seed)
                lowered = jax.jit(self._correct).lower(*weights, images, labels)
                self._evaluations[len(labels)] = self._compilers.submit(lowered.compile)
        for job in jobs:
            for first, last in self._segments(job):
                self._program(job, last - first)

    def train(self, job: Job) -> dict[str, Any]:
        """Trains once and returns the row of the run, see `study.run.row_of`.

        `seconds` and `seconds_per_update` leave out compilation, which many runs share.
        """
        study, row = self.study, OPTIMIZERS[self.study.arm(job.arm).optimizer]
        self.prepare([job])
        segments = self._segments(job)
        programs = [self._program(job, last - first).result() for first, last in segments]
        beginning = self._beginnings[self._setting(job)]
        concurrent.futures.wait(self._evaluations.values())
        began = time.monotonic()
        order, crops = self._order(job)
        with _on_cpu():
            rates = np.asarray(run.make_schedule(study, job)(np.arange(study.updates_of(job.arm))), np.float32)
        hyper = {name: np.float32(value(job.point)) for name, value in row.traced.items()}
        state = self._first_state(beginning, job.seed)
        progress = run.Progress()
        for program, (first, last) in zip(programs, segments, strict=True):
            start = time.monotonic()
            state, loss = program(state, hyper, rates, order, crops, np.int32(first), *self._training)
            loss = float(loss)
            seconds = time.monotonic() - start
            network = beginning.network_values(state)
            accuracy = self._accuracy(network, self._validation) if np.isfinite(loss) else 0.0
            progress.add(last, loss, accuracy, seconds)
            if beginning.reads_agreement is not None:
                progress.add_agreements(beginning.reads_agreement(state))
            if beginning.reads_rates is not None:
                progress.add_rates(beginning.reads_rates(state), float(hyper["max_rate"]))
            if not progress.trains:
                break
        found: dict[str, float | None] = {"test_accuracy": 0.0}
        if job.phase == "final" and progress.trains:
            network = beginning.network_values(state)
            found = {"test_accuracy": self._accuracy(network, self._test), **self._measured(network)}
        return run.row_of(job, progress, found, jax.devices()[0].device_kind, began)

    def _segments(self, job: Job) -> list[tuple[int, int]]:
        return run.segments(self.study.updates_of(job.arm), self.study.evaluations)

    def _measured(self, network: tuple[list[Any], list[Any]]) -> dict[str, float | None]:
        groups = self._network.trainable_variables, self._network.non_trainable_variables
        pairs = (zip(*group, strict=True) for group in zip(groups, network, strict=True))
        value_of = {id(variable): value for group in pairs for variable, value in group}
        return self._measures.of([value_of[id(variable)] for variable in self._network.variables])

    def _setting(self, job: Job) -> Setting:
        study, arm = self.study, self.study.arm(job.arm)
        compiled_in = OPTIMIZERS[arm.optimizer].compiled_in | {"micro_batch_size"}
        named = tuple(sorted((k, v) for k, v in job.point.items() if k in compiled_in))
        adversarial = None if arm.adversarial is None else tuple(sorted(arm.adversarial.items()))
        updates, augment = study.updates_of(arm.name), study.augment_of(arm.name)
        return arm.optimizer, job.batch_size, named, updates, augment, adversarial

    def _first_state(self, beginning: _Beginning, seed: int) -> State:
        """Returns the state before the first update of a run with this seed."""
        weights = self._initial_weights(seed)
        if not isinstance(beginning.model, ConAdvModel):
            return (*weights, beginning.slots)
        # Snapshots of stale weights begin as the network's; auxiliary batch norms as batch norms do.
        with _on_cpu():
            for variables, values in zip(
                (self._network.trainable_variables, self._network.non_trainable_variables), weights, strict=True
            ):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(np.asarray(value))
            beginning.model.forget()
            groups = beginning.model.trainable_variables, beginning.model.non_trainable_variables
            trainable, others = ([np.asarray(v) for v in variables] for variables in groups)
        return (*jax.device_put((trainable, others)), beginning.slots)

    def _program(self, job: Job, length: int) -> concurrent.futures.Future[Any]:
        """Returns the program of the updates between two evaluations."""
        key = self._setting(job), length
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
        augment = study.augment_of(job.arm)
        with _on_cpu():
            model = run.compiled(study, job, self._network, learning_rate=1.0, metrics=None)
            optimizer = model.optimizer
            if isinstance(model, ConAdvModel):
                model.get_ready(tuple(array[:2] for array in self._data.training))
            optimizer.build(model.trainable_variables)
            metrics = [np.asarray(v) for v in model.metrics_variables]
        (learning_rate,) = _places([optimizer.learning_rate], optimizer.variables)

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
                if augment == "crop_flip":
                    batch = crop_and_flip(batch, crops[number])
                logs, carry = model.train_step((trainable, others, slots, metrics), (batch, labels[chosen]))
                return tuple(map(list, carry)), logs["loss"]

            with _attributes(optimizer, hyper):
                carry, losses = lax.scan(update, (*state, list(metrics)), first + jnp.arange(length))
            return carry[:3], losses[-1]  # the mean over the segment, as `fit` reports it

        beginning = self._beginnings[self._setting(job)] = _Beginning(
            model,
            jax.device_put([np.asarray(v) for v in optimizer.variables]),
            (
                _places(self._network.trainable_variables, model.trainable_variables),
                _places(self._network.non_trainable_variables, model.non_trainable_variables),
            ),
            _reader_of_agreements(optimizer) if study.records_agreement_of(job.arm) else None,
            _reader_of_rates(optimizer) if isinstance(optimizer, LayerwiseUpdate) else None,
        )
        example = self._first_state(beginning, study.seed)
        hyper = {name: np.float32(0) for name in row.traced}
        rates = np.zeros(study.updates_of(job.arm), np.float32)
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
        updates, augment = self.study.updates_of(job.arm), self.study.augment_of(job.arm)
        key = job.batch_size, job.seed, updates, augment
        if key not in self._batches:
            batches = run.Batches(self._data.training, job.batch_size, augment, job.seed)
            numbers = range(updates)
            order = np.stack([batches.examples(number) for number in numbers]).astype(np.int32)
            crops = np.zeros((updates, 0, 3), np.int8)
            if augment == "crop_flip":
                crops = np.stack([batches.crops(number) for number in numbers])
            self._batches[key] = jax.device_put((order, crops))
        return self._batches[key]

    def _correct(self, trainable: list[Any], others: list[Any], images: Any, labels: Any) -> Any:
        logits, _ = self._network.stateless_call(trainable, others, images, training=False)
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    def _accuracy(self, network: tuple[list[Any], list[Any]], parts: list[tuple[Any, Any]]) -> float:
        correct = [self._evaluations[len(y)].result()(*network, x, y) for x, y in parts]
        return float(sum(correct)) / sum(len(y) for _, y in parts)


def _parts(labelled: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """Images and labels, `EVALUATION_BATCH_SIZE` at a time."""
    images, labels = labelled
    starts = range(0, len(labels), EVALUATION_BATCH_SIZE)
    return [tuple(array[start : start + EVALUATION_BATCH_SIZE] for array in (images, labels)) for start in starts]


def _places(variables: Sequence[Any], among: Sequence[Any]) -> list[int]:
    """Where variables are in a list."""
    place_of = {id(variable): place for place, variable in enumerate(among)}
    return [place_of[id(variable)] for variable in variables]


def _reader_of_rates(optimizer: Any) -> Callable[[State], list[float]]:
    """Returns a function that reads the rates of the adapted tensors from a state."""
    labels, adapted = variable_labels(trained_variables(optimizer)), set(optimizer.adapted_tensors())
    (place,) = _places([optimizer._packed_rates], optimizer.variables)
    wanted = np.asarray([label in adapted for label in labels])
    return lambda state: list(np.asarray(state[2][place])[wanted].tolist())


def _reader_of_agreements(optimizer: Any) -> Callable[[State], dict[str, float | None]]:
    """Returns a function that reads ||grad|| / s of every adapted tensor from a state."""
    labels, adapted = variable_labels(trained_variables(optimizer)), set(optimizer.adapted_tensors())
    packed = optimizer._packed_batch_norms, optimizer._packed_norms
    places = _places(packed, optimizer.variables)

    def read(state: State) -> dict[str, float | None]:
        pairs = zip(labels, *(np.asarray(state[2][place]).tolist() for place in places), strict=True)
        return {label: whole / s if s > 0 else None for label, whole, s in pairs if label in adapted}

    return read


def crop_and_flip(images: Any, crops: Any) -> Any:
    """Returns `study.arrays.crop_and_flip` on the device."""
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
