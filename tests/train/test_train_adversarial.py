"""Adversarial training from the command line: what is refused, what a run trains with, leaves behind and resumes."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
from selection import long
from train_runs import add_networks, arrays_of, untimed_rows_of

from tf_largebatch import ConAdvModel, accuracy_under_attack, data, train
from tf_largebatch.distribute import strategies
from tf_largebatch.train import run_directory
from tf_largebatch.train.adversarial import rand_augment
from tf_largebatch.train.config import TrainConfig

QUICK = TrainConfig.from_flags(epochs=2, batch_size=512, verbose=0, model="tiny", adversarial="conadv", epsilon=16.0)


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    add_networks(monkeypatch)


def test_epsilon_is_in_units_of_the_value_range():
    """The digits have pixels from 0 to 16: black and white are where 0 and 16 go."""
    dataset = data.load("digits")
    ((lower, upper),) = dataset.value_range()
    images, _ = next(iter(dataset.evaluation(360)))
    np.testing.assert_allclose([np.min(images), np.max(images)], [lower, upper], rtol=1e-5)
    np.testing.assert_allclose((upper - lower) * dataset.std[0], 1.0, rtol=1e-6)


def test_grey_images_are_refused_where_keras_cannot_augment_them(monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.12.4")
    with pytest.raises(
        ValueError, match=r"^augmented_stream must be none for grey images with Keras 3\.12\.4; .*3\.15"
    ):
        rand_augment(data.load("digits"))


def test_the_augmented_view_is_of_standardized_images_in_their_range():
    dataset = data.load("digits")
    ((lower, upper),) = dataset.value_range()
    images, _ = next(iter(dataset.evaluation(32)))
    try:
        rand_augment(dataset)
    except ValueError as error:
        if "RandAugment takes them from Keras 3.15 on" not in str(error):
            raise
        pytest.skip(str(error))
    view = np.asarray(rand_augment(dataset)(images, training=True))
    assert view.shape == images.shape and np.abs(view - images).max() > 0.1
    # Interpolation of the geometric operations rounds.
    assert lower - 1e-3 <= view.min() and view.max() <= upper + 1e-3
    np.testing.assert_allclose(rand_augment(dataset)(images, training=False), images, atol=1e-5)
    with pytest.raises(ValueError, match="augmented_stream must be none for images of 2 channels"):
        rand_augment(dataclasses.replace(dataset, image_shape=(8, 8, 2)))


def test_what_a_run_leaves_behind(tmp_path, capsys):
    output_dir = tmp_path / "run"
    result = train.train(QUICK.with_flags(output_dir=str(output_dir), eval_attack="untargeted"))
    printed = capsys.readouterr().out
    assert (
        "conadv: adversarial images within 16/255 by targeted attacks of 1 step with weights 1 updates old" in printed
    )
    assert result.attack == "one untargeted step of 16 in units of 1/255"
    assert f"test accuracy {result.attacked_accuracy:.4f} after {result.attack}\n" in printed
    assert json.loads((output_dir / "result.json").read_text()) == dataclasses.asdict(result)
    for row in untimed_rows_of(output_dir / "metrics.csv"):
        assert float(row["loss"]) == pytest.approx(float(row["clean_loss"]) + float(row["adversarial_loss"]), rel=1e-4)
        assert 0 <= float(row["adversarial_accuracy"]) <= 1 and 0 < float(row["perturbation"]) <= 16
    for name in (run_directory.CURVES, run_directory.PICTURES):
        assert (output_dir / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((output_dir / "config.json").read_text())["arguments"]["staleness"] == 1

    model = keras.models.load_model(output_dir / "final.keras")
    assert not isinstance(model, ConAdvModel)
    dataset = data.load("digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = accuracy_under_attack(model, dataset.evaluation_of_pixels(360), loss, 16.0, (0.0, dataset.pixel_scale))
    # One image of 360: another batching adds up in another order.
    assert found == pytest.approx(result.attacked_accuracy, abs=1.5 / 360)


@pytest.mark.parametrize(
    "options",
    [
        long({"staleness": 2, "optimizer": "clars", "norm_examples": 32}),
        long({"staleness": 1, "optimizer": "sgd", "num_steps": 2, "augment": "crop_flip", "epsilon": 40.0}),
    ],
)
def test_resuming_equals_not_having_stopped(options, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = QUICK.with_flags(epochs=3, **options)
    uninterrupted = train.train(config.with_flags(output_dir=str(whole)))
    train.train(config.with_flags(output_dir=str(halves), stop_after_epoch=1))
    # Evaluating under an attack is no part of the run: it may be asked for later.
    resumed = train.train(config.with_flags(output_dir=str(halves), resume=True, eval_attack="targeted"))
    assert (resumed.accuracy, resumed.loss) == (uninterrupted.accuracy, uninterrupted.loss)
    assert uninterrupted.attacked_accuracy is None and 0 <= resumed.attacked_accuracy <= 1
    first, second = arrays_of(whole), arrays_of(halves)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert untimed_rows_of(whole / "metrics.csv") == untimed_rows_of(halves / "metrics.csv")


@pytest.mark.parametrize(
    "options",
    [
        long({"adversarial": "disadv", "optimizer": "lars", "micro_batch_size": 200, "label_smoothing": 0.1}),
        long({"adversarial": "noise", "optimizer": "adamw"}),
        long({"optimizer": "lamb", "targeted": False, "random_start": 0.0, "step_size": 8.0}),
        long({"optimizer": "clars", "norm_examples": 16, "mixed_precision": "mixed_float16"}),
        long({"adversarial": "disadv", "optimizer": "sgd", "augmented_stream": "rand_augment"}),
    ],
)
def test_other_options_train(options, tmp_path):
    config = QUICK.with_flags(epochs=1, output_dir=str(tmp_path / "run"), **options)
    result = train.train(config)
    assert result.complete and np.isfinite(result.loss)
    keras.models.load_model(tmp_path / "run" / "final.keras")


@pytest.mark.parametrize("adversarial", [long("conadv"), long("disadv")])
def test_two_replicas(adversarial, tmp_path, two_replicas, monkeypatch):
    monkeypatch.setattr(strategies, "build", lambda *_: two_replicas)
    output_dir = tmp_path / "run"
    options = {"strategy": "mirrored", "replicas": 2, "optimizer": "lars", "eval_attack": "untargeted"}
    config = QUICK.with_flags(output_dir=str(output_dir), adversarial=adversarial, **options)
    result = train.train(config)
    assert result.complete and 0 <= result.attacked_accuracy <= 1
    for row in untimed_rows_of(output_dir / "metrics.csv"):
        assert float(row["loss"]) == pytest.approx(float(row["clean_loss"]) + float(row["adversarial_loss"]), rel=1e-4)
    assert (output_dir / run_directory.PICTURES).exists()


@pytest.mark.long
def test_a_plain_run_evaluated_under_attack_trains_as_without(tmp_path):
    config = QUICK.with_flags(epochs=1, adversarial="none", epsilon=None, optimizer="sgd")
    plain = train.train(config.with_flags(output_dir=str(tmp_path / "plain")))
    options = {"eval_attack": "untargeted", "eval_epsilon": 0.0}
    evaluated = train.train(config.with_flags(output_dir=str(tmp_path / "evaluated"), **options))
    assert evaluated.attacked_accuracy == pytest.approx(evaluated.accuracy, abs=1e-6)
    assert (plain.accuracy, plain.loss) == (evaluated.accuracy, evaluated.loss)
    assert not (tmp_path / "plain" / run_directory.PICTURES).exists()
