"""Adversarial training from the command line: what is refused, what a run trains with, leaves behind and resumes."""

from __future__ import annotations

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from train_runs import arrays_of, command_line, rows_of

from tf_largebatch import ConAdvModel, accuracy_under_attack, data, models, train
from tf_largebatch.distribute import strategies
from tf_largebatch.train import run_directory
from tf_largebatch.train.adversarial import rand_augment
from tf_largebatch.train.config import TrainConfig, resolved

QUICK = TrainConfig(epochs=2, batch_size=512, verbose=0, adversarial="conadv", epsilon=16.0)


def untimed_rows_of(path):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows_of(path)]


@pytest.fixture
def tiny_model(monkeypatch):
    """A model that compiles quickly, with batch norm to be split and dropout to be repeated."""

    def build(image_shape, num_classes):
        inputs = keras.Input(image_shape)
        x = keras.layers.Conv2D(4, 3, 2, use_bias=False, name="conv")(inputs)
        x = keras.layers.BatchNormalization(momentum=0.9, name="bn")(x)
        x = keras.layers.Dropout(0.2, name="dropout")(keras.layers.Flatten()(x))
        return keras.Model(inputs, keras.layers.Dense(num_classes, dtype="float32", name="logits")(x))

    monkeypatch.setitem(models._MODELS, "tiny", build)
    return "tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adversarial=conadv", "--epsilon=-1"], "epsilon must be finite and 0 or more; received epsilon=-1"),
        (["--adversarial=conadv", "--epsilon=nan"], "epsilon must be finite and 0 or more; received epsilon=nan"),
        (["--adversarial=conadv", "--staleness=-1"], "staleness must be 0 or more; received staleness=-1"),
        (["--adversarial=conadv", "--staleness=0"], "staleness=0, which is adversarial=disadv"),
        (["--adversarial=disadv", "--staleness=1"], "staleness must be 0 with adversarial=disadv.*staleness=1"),
        (["--adversarial=conadv", "--attack_steps=0"], "attack_steps must be 1 or more; received attack_steps=0"),
        (["--adversarial=conadv", "--step_size=-1"], "step_size must be finite and 0 or more; received step_size=-1"),
        (["--adversarial=conadv", "--random_start=2"], "random_start must be a probability from 0 to 1.*=2"),
        (["--adversarial=conadv", "--noise_scale"], "noise_scale must be left out .*adversarial='conadv'"),
        (["--adversarial=noise", "--attack_steps=2"], "attack_steps applies to adversarial=conadv .*'noise'"),
        (["--epsilon=4"], "epsilon applies to adversarial training, eval_epsilon to eval_attack; received epsilon=4"),
        (["--staleness=2"], "staleness applies to adversarial=conadv .*staleness=2 with adversarial='none'"),
        (["--targeted"], "targeted applies to adversarial=conadv .*targeted=True with adversarial='none'"),
        (["--augmented_stream=rand_augment"], "augmented_stream applies to adversarial training, augment to any"),
        (["--eval_epsilon=4"], "eval_epsilon applies to eval_attack; received eval_epsilon=4.0"),
        (["--eval_attack=targeted", "--eval_epsilon=-4"], "eval_epsilon must be finite and 0 or more"),
    ],
)
def test_refusals(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line(*arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_defaults():
    found = resolved(TrainConfig(adversarial="conadv"))
    assert (found.epsilon, found.staleness, found.attack_steps, found.targeted) == (4.0, 1, 1, True)
    assert found.noise_scale is False and found.eval_epsilon is None
    assert resolved(TrainConfig(adversarial="disadv")).staleness == 0
    assert resolved(TrainConfig(adversarial="noise")).staleness is None
    assert resolved(TrainConfig()).epsilon is None
    # The radius that the run trains with, unless stated.
    assert resolved(TrainConfig(adversarial="noise", epsilon=8.0, eval_attack="targeted")).eval_epsilon == 8.0
    assert resolved(TrainConfig(eval_attack="untargeted")).eval_epsilon == 4.0
    # What is resolved resolves to itself, as it does when a run is resumed.
    for kind in ("none", "conadv", "disadv", "noise"):
        once = resolved(TrainConfig(adversarial=kind, eval_attack="untargeted"))
        assert resolved(once) == once


def test_epsilon_is_in_pixels_of_standardised_images():
    """The digits have pixels from 0 to 16: black and white are where 0 and 16 go."""
    dataset = data.load("digits")
    ((lower, upper),) = dataset.value_range()
    images, _ = next(iter(dataset.evaluation(360)))
    np.testing.assert_allclose([np.min(images), np.max(images)], [lower, upper], rtol=1e-5)
    np.testing.assert_allclose((upper - lower) * dataset.std[0], 1.0, rtol=1e-6)


def test_the_augmented_view_is_of_standardised_images_in_their_range():
    dataset = data.load("digits")
    ((lower, upper),) = dataset.value_range()
    images, _ = next(iter(dataset.evaluation(32)))
    view = np.asarray(rand_augment(dataset)(images, training=True))
    assert view.shape == images.shape and np.abs(view - images).max() > 0.1
    # Interpolation of the geometric operations rounds.
    assert lower - 1e-3 <= view.min() and view.max() <= upper + 1e-3
    np.testing.assert_allclose(rand_augment(dataset)(images, training=False), images, atol=1e-5)
    with pytest.raises(ValueError, match="augmented_stream must be none for images of 2 channels"):
        rand_augment(dataclasses.replace(dataset, image_shape=(8, 8, 2)))


def test_what_a_run_leaves_behind(tmp_path, tiny_model, capsys):
    output_dir = tmp_path / "run"
    result = train.train(
        dataclasses.replace(QUICK, model=tiny_model, output_dir=str(output_dir), eval_attack="untargeted")
    )
    printed = capsys.readouterr().out
    assert "conadv: copies within 16 pixels of 255, made by targeted attacks of 1 step with weights 1 up" in printed
    assert result.attack == "one untargeted step of 16 pixels of 255"
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
    found = accuracy_under_attack(model, dataset.evaluation(360), loss, 16.0, dataset.value_range())
    # One image of 360: another batching adds up in another order.
    assert found == pytest.approx(result.attacked_accuracy, abs=1.5 / 360)


@pytest.mark.parametrize(
    "options",
    [
        {"staleness": 2, "optimizer": "clars", "norm_examples": 32},
        {"staleness": 1, "optimizer": "sgd", "attack_steps": 2, "augment": "crop_flip", "epsilon": 40.0},
    ],
)
def test_resuming_equals_not_having_stopped(options, tmp_path, tiny_model):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = dataclasses.replace(QUICK, epochs=3, model=tiny_model, **options)
    uninterrupted = train.train(dataclasses.replace(config, output_dir=str(whole)))
    train.train(dataclasses.replace(config, output_dir=str(halves), stop_after_epoch=1))
    # Evaluating under an attack is no part of the run: it may be asked for later.
    resumed = train.train(dataclasses.replace(config, output_dir=str(halves), resume=True, eval_attack="targeted"))
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
        {"adversarial": "disadv", "optimizer": "lars", "micro_batch_size": 200, "label_smoothing": 0.1},
        {"adversarial": "noise", "optimizer": "adamw"},
        {"optimizer": "lamb", "targeted": False, "random_start": 0.0, "step_size": 8.0},
        {"optimizer": "clars", "norm_examples": 16, "mixed_precision": "mixed_float16"},
        {"adversarial": "disadv", "optimizer": "sgd", "augmented_stream": "rand_augment"},
    ],
)
def test_other_options_train(options, tmp_path, tiny_model):
    config = dataclasses.replace(QUICK, epochs=1, model=tiny_model, output_dir=str(tmp_path / "run"), **options)
    result = train.train(config)
    assert result.complete and np.isfinite(result.loss)
    keras.models.load_model(tmp_path / "run" / "final.keras")


@pytest.mark.parametrize("adversarial", ["conadv", "disadv"])
def test_two_replicas(adversarial, tmp_path, tiny_model, two_replicas, monkeypatch):
    monkeypatch.setattr(strategies, "build", lambda *_: two_replicas)
    output_dir = tmp_path / "run"
    options = {"strategy": "mirrored", "replicas": 2, "optimizer": "lars", "eval_attack": "untargeted"}
    config = dataclasses.replace(
        QUICK, model=tiny_model, output_dir=str(output_dir), adversarial=adversarial, **options
    )
    result = train.train(config)
    assert result.complete and 0 <= result.attacked_accuracy <= 1
    for row in untimed_rows_of(output_dir / "metrics.csv"):
        assert float(row["loss"]) == pytest.approx(float(row["clean_loss"]) + float(row["adversarial_loss"]), rel=1e-4)
    assert (output_dir / run_directory.PICTURES).exists()


def test_a_plain_run_evaluated_under_attack_trains_as_without(tmp_path, tiny_model):
    config = dataclasses.replace(QUICK, epochs=1, model=tiny_model, adversarial="none", epsilon=None, optimizer="sgd")
    plain = train.train(dataclasses.replace(config, output_dir=str(tmp_path / "plain")))
    options = {"eval_attack": "untargeted", "eval_epsilon": 0.0}
    evaluated = train.train(dataclasses.replace(config, output_dir=str(tmp_path / "evaluated"), **options))
    assert evaluated.attacked_accuracy == pytest.approx(evaluated.accuracy, abs=1e-6)
    assert (plain.accuracy, plain.loss) == (evaluated.accuracy, evaluated.loss)
    assert not (tmp_path / "plain" / run_directory.PICTURES).exists()
