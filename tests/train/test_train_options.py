"""Options of a run: best epoch, averaged weights, mixup, random augmentation, TensorBoard, configuration files."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
from train_runs import add_networks, arrays_of, command_line, rows_of

from tf_largebatch import data, pretrained
from tf_largebatch.evaluate import evaluate
from tf_largebatch.train import final_model, run_directory
from tf_largebatch.train.config import FLAGS, NOT_STORED

pytestmark = pytest.mark.quick_on_jax(
    "test_a_run_is_repeated_from_its_configuration_and_resumed", "test_refused_configuration_files"
)

QUICK = ("--model=linear", "--optimizer=sgd", "--verbose=0")


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    add_networks(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every option."""
    output_dir = tmp_path_factory.mktemp("options") / "run"
    options = ("--augment=random", "--mixup=0.3", "--label_smoothing=0.1", "--clip_norm=1", "--ema_momentum=0.9")
    with pytest.MonkeyPatch.context() as patch:
        add_networks(patch)
        options = (*QUICK, *options, "--save_best=val_accuracy", "--epochs=2", f"--output_dir={output_dir}")
        assert command_line(*options) == 0
    return output_dir


def same_weights(one, other):
    first, second = arrays_of(one), arrays_of(other)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_a_run_is_repeated_from_its_configuration_and_resumed(run, tmp_path):
    repeated = tmp_path / "repeated"
    config = f"--config={run / 'config.json'}"
    assert command_line(config, "--verbose=0", "--stop_after_epoch=1", f"--output_dir={repeated}") == 0
    assert command_line("--resume", "--verbose=0", f"--output_dir={repeated}") == 0
    assert same_weights(run, repeated)
    arguments = [json.loads((path / "config.json").read_text())["arguments"] for path in (run, repeated)]
    assert arguments[0] == arguments[1] and set(arguments[0]) == set(FLAGS) - set(NOT_STORED)


def test_flags_come_before_the_configuration_file(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("model: linear\noptimizer: adam\nepochs: 5\n")
    (tmp_path / "run.json").write_text('{"model": "linear", "optimizer": "adam", "epochs": 5}')
    for suffix in ("yaml", "json"):
        config = f"--config={tmp_path / f'run.{suffix}'}"
        output_dir = f"--output_dir={tmp_path / suffix}"
        assert command_line(config, "--epochs=1", "--optimizer=sgd", "--verbose=0", output_dir) == 0
        assert "sgd: batches of 512, 2 updates in each of 1 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.txt", "", "config must be a .json, .yaml or .yml file that exists"),
        ("run.yaml", "modle: linear", "received config='modle': did you mean model"),
        ("run.yaml", "output_dir: runs", "config must be made of flags of the run; received config='output_dir'"),
        ("run.yaml", "- model", "config must be a mapping of flags' names to values"),
        ("run.yaml", "model: [", "run.yaml is no YAML file"),
        ("run.json", "{", "run.json is damaged"),
        ("run.json", '{"epochs": "many"}', "epochs must be of type int in .*run.json; received epochs='many'"),
    ],
)
def test_refused_configuration_files(name, content, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(content)
    assert command_line(f"--config={tmp_path / name}") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_averaged_weights_are_evaluated_and_saved_and_the_best_epoch_too(run):
    rows = rows_of(run / "metrics.csv")
    dataset = data.load("digits")
    final, best = (final_model.load(run / name)[0] for name in ("final.keras", "best.keras"))
    assert evaluate(final, dataset).accuracy == pytest.approx(float(rows[-1]["val_accuracy"]), abs=1e-6)
    assert evaluate(best, dataset).accuracy == pytest.approx(max(float(row["val_accuracy"]) for row in rows), abs=1e-6)
    # The checkpoint holds the weights that training goes on with.
    assert np.abs(final.get_weights()[0] - arrays_of(run)["model/0"]).max() > 1e-3


def test_a_run_that_ended_before_its_model_was_saved_saves_the_averages(run, tmp_path):
    copy = tmp_path / "run"
    for path in run.rglob("*"):
        if path.is_file() and path.name not in ("final.keras", "result.json"):
            (copy / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(run)).write_bytes(path.read_bytes())
    assert command_line("--resume", "--verbose=0", f"--output_dir={copy}") == 0
    for one, other in zip(
        *(final_model.load(path / "final.keras")[0].get_weights() for path in (run, copy)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_random_augmentation_and_mixup_depend_on_seed_and_epoch_alone():
    dataset = data.load("digits", augment="random")
    whole = list(dataset.mixed(512, 3, 0, 3, 0.4))
    resumed = list(dataset.mixed(512, 3, 1, 3, 0.4))
    assert len(whole) == 6 and len(resumed) == 4
    for (x, y), (images, labels) in zip(whole[2:], resumed, strict=True):
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, labels)
    assert whole[0][0].shape == (512, 8, 8, 1) and whole[0][0].dtype == np.float32
    np.testing.assert_allclose(whole[0][1].sum(axis=1), 1, atol=1e-6)
    assert ((whole[0][1] > 0).sum(axis=1) == 2).mean() > 0.5  # most pairs have different labels
    plain = np.asarray(next(iter(data.load("digits").train(512, 3)))[0])
    changed = np.asarray(next(iter(dataset.train(512, 3)))[0])
    assert plain.shape == changed.shape and 0.1 < np.abs(plain - changed).mean() < 2


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    assert command_line(*QUICK, "--epochs=1", "--tensorboard", f"--output_dir={tmp_path / 'run'}") == 0
    (events,) = (tmp_path / "run" / run_directory.TENSORBOARD / "metrics").iterdir()
    assert b"val_accuracy" in events.read_bytes()
    monkeypatch.setattr("tf_largebatch.data.tensorflow_is_installed", lambda: False)
    assert command_line(*QUICK, "--tensorboard", f"--output_dir={tmp_path / 'other'}") == 1


@pytest.mark.long
def test_a_model_from_a_file_goes_on_training(run, tmp_path, capsys):
    assert command_line(f"--model={run / 'final.keras'}", "--optimizer=sgd", "--epochs=1", "--verbose=0",
                        f"--output_dir={tmp_path / 'more'}") == 0  # fmt: skip
    pixels = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 16)(pixels))
    model = keras.Model(pixels, keras.layers.Dense(10, activation="softmax")(x))
    assert not pretrained.returns_logits(model)
    model.save(tmp_path / "softmax.keras")
    options = (f"--model={tmp_path / 'softmax.keras'}", "--optimizer=sgd", "--epochs=5", "--batch_size=128")
    assert command_line(*options, "--verbose=0", f"--output_dir={tmp_path / 'run'}") == 0
    found, information = final_model.load(tmp_path / "run" / "final.keras")
    assert information == final_model.Information(None, 16.0, logits=False)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"] > 0.7
    assert evaluate(found, data.load("digits"), logits=False).accuracy == pytest.approx(result["accuracy"], abs=1e-6)
    capsys.readouterr()
    for arguments, message in (
        ((f"--model={tmp_path / 'softmax.keras'}", "--image_size=12"), "model must have inputs of shape (12, 12, 1)"),
        (("--model=none.keras",), "model must be a file that exists"),
        ((f"--model={tmp_path / 'softmax.keras'}", "--weights=imagenet"), "weights must be left out with model="),
        (("--weights=imagenet",), "weights must be left out with model=resnet8"),
    ):
        assert command_line(*arguments) == 1
        assert message in capsys.readouterr().err


@pytest.mark.long
def test_weights_of_an_application(tmp_path):
    network = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(32, 32, 3))
    network.save_weights(tmp_path / "network.weights.h5")
    model = pretrained.with_weights(
        "mobilenet", str(tmp_path / "network.weights.h5"), (32, 32, 1), 10, pixel_scale=16.0
    )
    images = np.random.default_rng(0).uniform(0, 16, (2, 32, 32, 1)).astype(np.float32)
    prepared = keras.applications.mobilenet.preprocess_input(np.repeat(images * 255 / 16, 3, axis=-1))
    features = np.asarray(network(prepared, training=False)).mean(axis=(1, 2))
    kernel, bias = (np.asarray(one) for one in model.layers[-1].get_weights())
    np.testing.assert_allclose(np.asarray(model(images, training=False)), features @ kernel + bias, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"model MobileNet cannot be built with weights='none\.weights\.h5' for images"
    ):
        pretrained.with_weights("mobilenet", "none.weights.h5", (32, 32, 3), 10)
