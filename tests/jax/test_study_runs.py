"""Runs of a study with programs that many runs share, against Keras's `fit`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from selection import long_unless

from tf_largebatch import models
from tf_largebatch.backend.jax import study_runs
from tf_largebatch.study import arrays, execution, jobs, run
from tf_largebatch.study.config import make_study

RATES = {"learning_rate": {"log": [0.05, 1.0]}, "power": [0.5, 2]}
LAYERWISE = {"adapted_learning_rate": {"log": [0.03, 1.0]}, **RATES}
CONTENT = {
    "dataset": "digits",
    "model": "conv4",
    "batch_sizes": [32],
    "updates": 6,
    "trials": 2,
    "final_seeds": [5],
    "evaluations": 2,
    "validation_examples": 300,
    "augment": "crop_flip",
    "record_agreement": True,
    "arms": {
        "clars": {"optimizer": "clars", "fixed": {"weight_decay": 0.01}, "space": LAYERWISE},
        "half": {
            "optimizer": "clars",
            "warmup": 0.4,
            "fixed": {"norm_exponent": 0.5, "max_rate": 0.1},
            "space": LAYERWISE,
        },
        "sample": {"optimizer": "clars", "fixed": {"norm_examples": 8}, "space": LAYERWISE},
        "lars": {"optimizer": "lars", "fixed": {"eta": 0.1, "weight_decay": 0.01}, "space": RATES},
        "adamw": {"optimizer": "adamw", "fixed": {"weight_decay": 0.1}, "space": RATES},
        "sgd": {"optimizer": "sgd", "space": RATES},
    },
}
OTHERS = {
    "signal": {
        "optimizer": "clars",
        "fixed": {"denominator": "signal", "norm_exponent": 0.5, "unadapted_rate_factor": 0.3},
        "space": LAYERWISE,
    },
    "root mean square": {
        "optimizer": "clars",
        "fixed": {"denominator": "root_mean_square", "micro_batch_size": 16},
        "space": LAYERWISE,
    },
    "parts": {"optimizer": "sgd", "scaling": "sqrt", "fixed": {"micro_batch_size": 8}, "space": RATES},
    "conadv": {
        "optimizer": "adamw",
        "augment": "none",
        "adversarial": {"epsilon": 8.0, "staleness": 2, "random_start": 0.0, "targeted": False},
        "space": {"learning_rate": {"log": [0.001, 0.01]}},
    },
    "long": {"optimizer": "sgd", "passes": 2, "augment": "none", "space": RATES},
}


@pytest.fixture(scope="module")
def study():
    return make_study({**CONTENT, "arms": {**CONTENT["arms"], **OTHERS}})


@pytest.fixture(scope="module")
def measuring_study():
    arms = {name: OTHERS[name] for name in ("conadv", "long")}
    return make_study({**CONTENT, "robustness": 8.0, "sharpness_examples": 64, "arms": arms})


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    def build(name, image_shape, num_classes):
        layers = keras.layers
        convolution = layers.Conv2D(4, 3, strides=2, use_bias=False, name="convolution")
        rest = [layers.BatchNormalization(momentum=0.9, name="norm"), layers.ReLU(), layers.Flatten()]
        return keras.Sequential([keras.Input(image_shape), convolution, *rest, layers.Dense(num_classes, name="head")])

    monkeypatch.setattr(models, "build", build)


def job(study, name, seed=5):
    return jobs.Job(name, 32, "final", 1, seed, jobs.all_points(study)[name][1])


@pytest.mark.parametrize("name", long_unless([*CONTENT["arms"], *OTHERS], ["half"]))
def test_the_curve_is_that_of_fit(study, name):
    found, expected = (train(study, job(study, name)) for train in (execution.train, run.train_with_fit))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(
        [loss for _, loss, _ in found["curve"]], [loss for _, loss, _ in expected["curve"]], rtol=1e-4
    )
    for value in ("validation_accuracy", "test_accuracy"):
        assert found[value] == pytest.approx(expected[value], abs=0.01)
    assert ("agreements" in found) == ((OTHERS | CONTENT["arms"])[name]["optimizer"] == "clars")
    np.testing.assert_allclose(found.get("at_cap", []), expected.get("at_cap", []))
    for label, values in expected.get("agreements", {}).items():
        np.testing.assert_allclose(found["agreements"][label], values, rtol=2e-3)
    assert found["status"] == expected["status"] == "trained"


@pytest.mark.long
@pytest.mark.parametrize("name", ["conadv", "long"])
def test_final_runs_are_measured_alike(measuring_study, name):
    of_job = job(measuring_study, name)
    found, expected = (train(measuring_study, of_job) for train in (execution.train, run.train_with_fit))
    for value in ("test_accuracy", "train_accuracy", "robust_accuracy_1_step", "robust_accuracy_10_steps"):
        assert found[value] == pytest.approx(expected[value], abs=0.02)
    assert found["sharpness"] == pytest.approx(expected["sharpness"], rel=0.02)
    assert found["robust_accuracy_10_steps"] <= found["robust_accuracy_1_step"] + 0.02 <= found["test_accuracy"] + 0.04


def test_arms_that_differ_in_numbers_alone_share_a_program(study):
    runs = study_runs.runs_of(study)
    runs.prepare([job(study, name) for name in CONTENT["arms"]])
    optimizers = [setting[0] for setting, length in runs._programs]
    assert set(optimizers) == {"clars", "lars", "adamw", "sgd"}
    assert optimizers.count("clars") == 2  # all norms, or those of a sample


def test_a_run_that_diverges_ends_there(study):
    point = {**jobs.all_points(study)["sgd"][1], "learning_rate": 1e30}
    row = execution.train(study, jobs.Job("sgd", 32, "final", 1, 5, point))
    assert (
        row["status"] == "diverged"
        and row["validation_accuracy"] == row["test_accuracy"] == 0
        and len(row["curve"]) == 1
    )


def test_what_cannot_be_compiled_fails_in_its_own_runs_alone(study):
    point = {**jobs.all_points(study)["sample"][1], "norm_examples": -1}
    broken = jobs.Job("sample", 32, "search", 1, 5, point)
    execution.prepare(study, [broken])
    with pytest.raises(ValueError, match="norm_examples must be"):
        execution.train(study, broken)


def test_crops_on_the_device_are_those_of_the_host():
    random = np.random.default_rng(0)
    images, crops = random.normal(size=(12, 8, 8, 3)).astype("float32"), arrays.draw_crops(12, random)
    assert set(crops[:, 2]) == {0, 1}
    found = study_runs.crop_and_flip(images, crops)
    np.testing.assert_array_equal(found, arrays.crop_and_flip(images, crops))
