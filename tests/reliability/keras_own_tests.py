"""Keras's own tests of optimizers and trainers, from the installed wheel, with this package's classes in place.

LARS and CLARS without layer adaptation are SGD with momentum to the number, so they stand in for `keras.optimizers.SGD`
wherever a test names it; `LargeBatchModel` stands in for the trainers that tests of the trainer define.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import unittest
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import keras

import tf_largebatch as lb

SOURCE = "keras.src"
OPTIMIZER_TESTS = ("optimizers.optimizer_test", "optimizers.sgd_test", "optimizers.optimizer_sparse_test")
OPTIMIZER_TESTS += ("optimizers.loss_scale_optimizer_test", "optimizers.multi_optimizer_test")
TRAINER_TESTS = "trainers.trainer_test"
# Of optimizers under tf.distribute; they make TensorFlow's devices anew, and so need a process of their own.
DISTRIBUTE_TESTS = "backend.tensorflow.optimizer_distribute_test"
# The tests of the trainer in which `LargeBatchModel` made a step.
TRAINED_WRAPPED: set[str] = set()


class _AsSgd:
    """Mixed into LARS or CLARS: the arguments, defaults and update of `keras.optimizers.SGD`."""

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, weight_decay=None, **arguments):
        norms = {"gradient_norms": "per_example"} if isinstance(self, lb.CLARS) else {}
        own = {"exclude_from_layer_adaptation": ".", "unadapted_rate_factor": 1.0, "max_rate": None, **norms}
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        # A saved configuration holds what is added here.
        super().__init__(learning_rate, momentum, nesterov=nesterov, **{**own, **arguments, **decay})


def _named_sgd(optimizer_class: type, name: str) -> type:
    made = type("SGD", (_AsSgd, optimizer_class), {"__module__": __name__, "__qualname__": name})
    return keras.saving.register_keras_serializable(package=name)(made)


LARS_AS_SGD = _named_sgd(lb.LARS, "LARS_AS_SGD")
CLARS_AS_SGD = _named_sgd(lb.CLARS, "CLARS_AS_SGD")
AS_SGD = {"LARS": LARS_AS_SGD, "CLARS": CLARS_AS_SGD}


def as_wrapper(trainer_class: type) -> type:
    """`LargeBatchModel` around a model that calls a trainer of Keras's tests, made with that trainer's arguments."""

    class Network(keras.Model):
        def __init__(self, inner: Any) -> None:
            super().__init__(dtype=inner.dtype_policy)
            self.inner = inner

        def call(self, x: Any) -> Any:
            return self.inner(x)

    class Wrapped(lb.LargeBatchModel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(Network(trainer_class(*args, **kwargs)))

        def train_step(self, *args: Any) -> Any:
            TRAINED_WRAPPED.add(running[0])
            return super().train_step(*args)

    return Wrapped


# The name of the test that runs.
running = [""]


@contextlib.contextmanager
def in_place_of_sgd(optimizer: str) -> Iterator[None]:
    """Within it Keras finds LARS or CLARS as SGD wherever it looks up SGD."""
    ours = AS_SGD[optimizer]
    package, module = (importlib.import_module(f"{SOURCE}.optimizers{name}") for name in ("", ".sgd"))
    with (
        mock.patch.object(package, "SGD", ours),
        mock.patch.object(module, "SGD", ours),
        mock.patch.object(keras.optimizers, "SGD", ours),
        mock.patch.dict(package.ALL_OBJECTS_DICT, {"sgd": ours}),
    ):
        yield


def imported_anew(name: str) -> ModuleType:
    """A module of Keras's tests, which reads the classes that are in place."""
    sys.modules.pop(f"{SOURCE}.{name}", None)
    return importlib.import_module(f"{SOURCE}.{name}")


def with_wrapped_trainers(module: ModuleType) -> ModuleType:
    """The tests of the trainer, whose trainers are wrapped in `LargeBatchModel`."""
    for name in ("ExampleModel", "StructModel", "ListInputModel", "ListOutputModel", "TrainingTestingLayer"):
        setattr(module, name, as_wrapper(getattr(module, name)))
    return module


def tests_of(module: ModuleType) -> dict[str, unittest.TestCase]:
    """The tests of a module by name, without those that Keras skips on this backend."""
    found = {}
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == module.__name__:
            for name in unittest.TestLoader().getTestCaseNames(value):
                marks = [*getattr(value, "pytestmark", ()), *getattr(getattr(value, name), "pytestmark", ())]
                if not any(mark.name == "skip" or (mark.name == "skipif" and any(mark.args)) for mark in marks):
                    found[name] = value(name)
    return found


def failure_of(test: unittest.TestCase) -> str | None:
    """Runs a test; returns the traceback of its failure, "skipped: REASON", or None if it passes."""
    result = unittest.TestResult()
    with contextlib.redirect_stdout(io.StringIO()):
        test.run(result)
    if result.skipped:
        return f"skipped: {result.skipped[0][1]}"
    problems = [text for _, text in [*result.failures, *result.errors]]
    if not problems:
        return None
    # pytest.skip is no error to pytest alone; and some tests read data with packages that are not installed.
    last = problems[0].strip().splitlines()[-1]
    reasons = ("Skipped: ", *(f"ModuleNotFoundError: No module named '{name}'" for name in ("grain", "torch")))
    return f"skipped: {last}" if last.startswith(reasons) else problems[0]


def run_all(name: str, optimizer: str, only: Collection[str] | None = None) -> dict[str, str | None]:
    """Runs a module's tests with the classes in place; returns what `failure_of` returns of each.

    Args:
        name: A module of Keras's tests.
        optimizer: "LARS" or "CLARS". With CLARS trainers are wrapped in `LargeBatchModel`.
        only: Names of tests; None for all.
    """
    with in_place_of_sgd(optimizer):
        module = imported_anew(name)
        if name == TRAINER_TESTS and optimizer == "CLARS":
            with_wrapped_trainers(module)
        found = {}
        for test_name, test in tests_of(module).items():
            if only is not None and test_name not in only:
                continue
            running[0] = test_name
            keras.utils.set_random_seed(0)
            keras.config.set_dtype_policy("float32")
            found[test_name] = failure_of(test)
            keras.config.set_dtype_policy("float32")
        return found


if __name__ == "__main__":
    for module_name in sys.argv[2:]:
        results = run_all(module_name, sys.argv[1])
        found = {"module": module_name, "optimizer": sys.argv[1], "results": results}
        print(json.dumps(found | {"trained wrapped": sorted(TRAINED_WRAPPED)}), flush=True)
