"""The curves of one run, drawn from its records."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from picture_texts import overlapping
from small_fits import fit, small_model

from tf_largebatch.callbacks import MetricsRecorder, plot_curves
from tf_largebatch.plots import style
from tf_largebatch.plots.heat_map import read_rate_table
from tf_largebatch.plots.run_files import LAYERWISE_RATES, METRICS


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
    assert read_rate_table(path)[1] == ["a/kernel", "b/kernel", "c/kernel"]


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


@pytest.mark.parametrize(("epochs", "tensors"), [(1, 1), (3, 40), (150, 8)])
def test_no_text_of_the_picture_overlaps_another(epochs, tensors, tmp_path, monkeypatch):
    columns = "epoch,updates,learning_rate,loss,accuracy,adversarial_loss,adversarial_accuracy,val_loss,val_accuracy"
    columns += ",noise_scale"
    rows = [f"{e},{e},1e-4,{2 / e},0.5,2.1,0.3,2.123456,0.123456,{4e6 * e}" for e in range(1, epochs + 1)]
    (tmp_path / METRICS).write_text("\n".join([columns, *rows]) + "\n")
    write_rates(
        tmp_path / LAYERWISE_RATES, [f"a_long_name/of_a_layer{i}/kernel" for i in range(tensors)], [1, 2, 40000]
    )
    drawn = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    plot_curves(tmp_path, batch_size=131072)
    assert not overlapping(drawn[0])
