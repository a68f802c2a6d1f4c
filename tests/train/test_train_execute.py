"""Whole runs on the digits: what they leave behind, and resuming them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from selection import long
from train_runs import add_networks, arrays_of, command_line, rows_of, untimed_rows_of

from tf_largebatch import data, train
from tf_largebatch.train import TrainConfig, run_directory

pytestmark = pytest.mark.quick_on_jax(
    "test_what_a_run_leaves_behind",
    "test_resuming_equals_not_having_stopped",
    "test_a_directory_of_another_run_is_refused",
    "test_other_options_train[options0]",
)

QUICK = TrainConfig.from_flags(epochs=2, batch_size=256, verbose=0)


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    add_networks(monkeypatch)


@pytest.fixture(scope="module")
def clars_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        add_networks(patch)
        yield _clars_run(tmp_path_factory)


def _clars_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "clars"
    result = train.train(QUICK.with_flags(model="tiny", output_dir=str(output_dir), norm_examples=64))
    return output_dir, result


def test_what_a_run_leaves_behind(clars_run):
    output_dir, result = clars_run
    assert sorted(os.listdir(output_dir)) == sorted(
        [
            "checkpoints",
            "config.json",
            "curves.png",
            "final.keras",
            "layerwise_rates.csv",
            "metrics.csv",
            "noise_scales.csv",
            "result.json",
        ]
    )
    config = json.loads((output_dir / "config.json").read_text())
    assert config["arguments"]["optimizer"] == "clars" and config["arguments"]["base_learning_rate"] > 0
    assert config["optimizer"]["config"]["learning_rate"]["config"]["total_steps"] == config["updates"] == 10
    assert config["dataset"]["mean"] and config["versions"]["keras"] == keras.__version__

    metrics = rows_of(output_dir / "metrics.csv")
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    assert [row["updates"] for row in metrics] == ["5", "10"]
    assert {"learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "images_per_second"} <= set(metrics[0])
    assert float(metrics[1]["learning_rate"]) < float(metrics[0]["learning_rate"])
    assert float(metrics[1]["loss"]) < float(metrics[0]["loss"])

    rates = rows_of(output_dir / "layerwise_rates.csv")
    assert [int(row["update"]) for row in rates if row["variable"] == "logits/kernel"] == list(range(1, 11))
    assert {row["rate"] for row in rates if row["variable"] == "logits/bias"} == {""}

    assert (output_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output_dir / "result.json").read_text()) == dataclasses.asdict(result)
    assert result.complete and result.updates == 10 and 0 < result.accuracy <= 1


@pytest.mark.long
def test_the_final_model_needs_keras_alone(clars_run, tmp_path):
    output_dir, result = clars_run
    dataset = data.load("digits")
    images, labels = (
        np.concatenate(part) for part in zip(*dataset.evaluation_of_pixels(100).as_numpy_iterator(), strict=True)
    )
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    program = f"""
import sys, keras, numpy as np
test = np.load({str(tmp_path / "test.npz")!r})
model = keras.models.load_model({str(output_dir / "final.keras")!r})
assert not any(name.startswith("tf_largebatch") for name in sys.modules)
print(np.mean(np.argmax(model.predict(test["images"], verbose=0), 1) == test["labels"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(result.accuracy, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "clars", "norm_examples": 32},
        # Dropout and augmentation draw random numbers: resuming restores where they had got to.
        long({"optimizer": "adamw", "augment": "crop_flip"}),
    ],
)
def test_resuming_equals_not_having_stopped(options, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = QUICK.with_flags(epochs=4, batch_size=512, model="tiny", **options)
    uninterrupted = train.train(config.with_flags(output_dir=str(whole)))
    half = train.train(config.with_flags(output_dir=str(halves), stop_after_epoch=2))
    assert not half.complete and not (halves / "final.keras").exists()
    resumed = train.train(config.with_flags(output_dir=str(halves), resume=True))
    assert (resumed.accuracy, resumed.loss) == (uninterrupted.accuracy, uninterrupted.loss)
    first, second = arrays_of(whole), arrays_of(halves)
    assert first.keys() == second.keys() and int(first["epoch"]) == 4
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)

    assert untimed_rows_of(whole / "metrics.csv") == untimed_rows_of(halves / "metrics.csv")
    if options["optimizer"] == "clars":
        assert (whole / "layerwise_rates.csv").read_text() == (halves / "layerwise_rates.csv").read_text()


def test_a_directory_of_another_run_is_refused(clars_run, capsys):
    output_dir, _ = clars_run
    before = {name: (output_dir / name).stat().st_mtime_ns for name in os.listdir(output_dir)}
    assert command_line(f"--output_dir={output_dir}") == 1
    assert "holds a run: add --resume to continue it, or name another directory" in capsys.readouterr().err
    assert command_line("--resume", "--batch_size=128", f"--output_dir={output_dir}") == 1
    assert "holds another run, with batch_size=256; received batch_size=128" in capsys.readouterr().err
    assert before == {name: (output_dir / name).stat().st_mtime_ns for name in os.listdir(output_dir)}


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "lars", "mixed_precision": "mixed_bfloat16", "classic_momentum": False},
        long({"optimizer": "clars", "mixed_precision": "mixed_float16", "norm_examples": 16}),
        long({"optimizer": "clars", "micro_batch_size": 100, "label_smoothing": 0.1, "max_rate": 0.1}),
        long({"optimizer": "lamb", "warmup_epochs": 0.5}),
        {"optimizer": "rmsprop", "eval_split": "validation", "micro_batch_size": 128},
    ],
)
def test_other_options_train(options, tmp_path):
    config = QUICK.with_flags(epochs=1, model="tiny", output_dir=str(tmp_path / "run"), **options)
    result = train.train(config)
    assert result.complete and np.isfinite(result.loss)
    assert (tmp_path / "run" / run_directory.LAYERWISE_RATES).exists() == (options["optimizer"] in ("clars", "lars"))
    keras.models.load_model(tmp_path / "run" / "final.keras")
    assert keras.config.dtype_policy().name == "float32"
