"""The curves of one run, drawn from its records."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest

from tf_largebatch.callbacks import MetricsRecorder, plot_curves
from tf_largebatch.plots import curves
from tf_largebatch.plots.run_files import LAYERWISE_RATES, METRICS


def small_model(optimizer, units=3):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(units, name="d")])
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=2, callbacks=(), units=3):
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    y = np.ones((12, units), "float32")
    model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


def write_rates(path, names, updates):
    rng = np.random.default_rng(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["update", "variable", "rate", "gradient_norm"])
        writer.writerows((u, name, 10 ** rng.normal(-2, 1), 1.0) for u in updates for name in names)


def test_a_tensor_held_at_a_cap_of_one_is_drawn_in_its_place(tmp_path):
    path = tmp_path / LAYERWISE_RATES
    path.write_text(
        "update,variable,rate,gradient_norm\n1,a/kernel,1.0,1\n1,a/bias,,1\n1,b/kernel,0.1,1\n1,c/kernel,1.0,1\n"
    )
    assert curves.read_rate_table(path)[1] == ["a/kernel", "b/kernel", "c/kernel"]


@pytest.mark.parametrize(
    ("names", "updates"),
    [([], []), (["d/kernel"], [1]), ([f"layer{i}/kernel" for i in range(110)], [1, 5, 10, 15])],
)
def test_curves_of_no_few_and_many_layers(names, updates, tmp_path):
    recorder = MetricsRecorder(tmp_path / METRICS, images_per_epoch=12)
    fit(small_model("sgd"), callbacks=[recorder])
    write_rates(tmp_path / LAYERWISE_RATES, names, updates)
    assert plot_curves(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_nan_rate_is_drawn_as_missing(tmp_path):
    fit(small_model("sgd"), callbacks=[MetricsRecorder(tmp_path / METRICS, 12)])
    (tmp_path / LAYERWISE_RATES).write_text(
        "update,variable,rate,gradient_norm\n1,a/kernel,0.1,1\n1,b/kernel,nan,nan\n2,a/kernel,0.2,1\n"
    )
    plot_curves(tmp_path)


def test_no_metrics_no_curves(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a metrics\.csv"):
        plot_curves(tmp_path)
