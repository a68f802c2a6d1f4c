"""The gradient noise scale of whole runs: measured, printed, drawn."""

from __future__ import annotations

import math

import pytest
from selection import long
from train_runs import add_networks

from tf_largebatch import train
from tf_largebatch.callbacks import plot_curves
from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.callbacks.noise_scale import read_noise_scales, readable_noise_scale
from tf_largebatch.train import run_directory
from tf_largebatch.train.config import TrainConfig

pytestmark = pytest.mark.quick_on_jax(
    "test_a_run_says_where_its_batch_stands[options2-True]",
    "test_two_digits",
    "test_curves_of_values_that_cannot_be_drawn",
)


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    add_networks(monkeypatch)


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        long({"optimizer": "clars"}, True),
        long({"optimizer": "clars", "noise_scale": False}, False),
        ({"optimizer": "sgd", "noise_scale": True, "norm_examples": 64}, True),
        long({"optimizer": "sgd"}, False),
    ],
)
def test_a_run_says_where_its_batch_stands(options, measured, tmp_path, capsys):
    output_dir = tmp_path / "run"
    train.train(TrainConfig.from_flags(model="linear", epochs=2, verbose=0, output_dir=str(output_dir), **options))
    printed, rows = capsys.readouterr().out, read_metrics(output_dir / run_directory.METRICS)
    assert ("noise_scale" in rows[0]) == measured
    assert (output_dir / run_directory.NOISE_SCALES).exists() == measured
    if measured:
        value = rows[-1]["noise_scale"]
        assert f"batch size 512; gradient noise scale {readable_noise_scale(value)}\n" in printed
        # The whole lies between its parts.
        parts = [
            one.noise_scale for update, _, one in read_noise_scales(output_dir / "noise_scales.csv") if update == 4
        ]
        assert len(parts) == 2 and min(parts) < value < max(parts)
    else:
        assert "noise scale" not in printed


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1873.0, "1900"),
        (0.0123, "0.012"),
        (9.96, "10"),
        (123456789.0, "120000000"),
        (math.inf, "beyond measure: the gradient is lost in the noise"),
        (math.nan, "unknown"),
    ],
)
def test_two_digits(value, words):
    assert readable_noise_scale(value) == words


@pytest.mark.parametrize("values", [["nan", "inf", "0.0"], ["nan", "120.5", "inf"], ["1e9", "3.0", "2.5"]])
def test_curves_of_values_that_cannot_be_drawn(values, tmp_path):
    rows = [f"{i + 1},{i},0.1,2.0,{v}" for i, v in enumerate(values)]
    (tmp_path / run_directory.METRICS).write_text(
        "\n".join(["epoch,updates,learning_rate,loss,noise_scale", *rows]) + "\n"
    )
    assert plot_curves(tmp_path, batch_size=512).read_bytes().startswith(b"\x89PNG")
