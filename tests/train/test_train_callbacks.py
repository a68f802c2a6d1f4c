"""Checkpoints, records and curves by themselves."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest

from tf_largebatch import LARS, run_directory
from tf_largebatch.callbacks import (
    LayerwiseRateRecorder,
    MetricsRecorder,
    curves,
    load_checkpoint,
    plot_curves,
    save_checkpoint,
)
from tf_largebatch.callbacks.layerwise_rates import read_layerwise_rates


def small_model(optimizer, units=3):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(units, name="d")])
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=2, callbacks=(), units=3):
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    y = np.ones((12, units), "float32")
    model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


def test_a_checkpoint_restores_weights_momentum_step_and_random_state(tmp_path):
    model = fit(small_model(keras.optimizers.SGD(0.1, momentum=0.9)))
    save_checkpoint(tmp_path / "c.npz", model, 2)
    other = small_model(keras.optimizers.SGD(0.1, momentum=0.9))
    assert load_checkpoint(tmp_path / "c.npz", other) == 2
    for a, b in zip([*fit(model).variables, *model.optimizer.variables],
                    [*fit(other).variables, *other.optimizer.variables], strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.npz", small_model("sgd"), 0)
    with pytest.raises(ValueError, match="must hold the variables of"):
        load_checkpoint(tmp_path / "c.npz", small_model("sgd", units=5))
    with pytest.raises(ValueError, match="must hold the variables of"):
        load_checkpoint(tmp_path / "c.npz", small_model("adam"))


def test_bfloat16_weights_survive_a_checkpoint(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    model = fit(small_model(keras.optimizers.SGD(0.1)))
    save_checkpoint(tmp_path / "c.npz", model, 1)
    other = small_model(keras.optimizers.SGD(0.1))
    load_checkpoint(tmp_path / "c.npz", other)
    np.testing.assert_array_equal(
        keras.ops.cast(model.variables[-1], "float32"), keras.ops.cast(other.variables[-1], "float32")
    )


@pytest.mark.parametrize(("every", "updates"), [("epoch", [3, 6]), (2, [1, 2, 4, 6]), (1, [1, 2, 3, 4, 5, 6])])
def test_layerwise_rates_are_recorded(every, updates, tmp_path):
    optimizer = LARS(0.1)
    fit(small_model(optimizer), callbacks=[LayerwiseRateRecorder(tmp_path / "rates.csv", every)])
    records = read_layerwise_rates(tmp_path / "rates.csv")
    assert [update for update, name, *_ in records if name.endswith("d/kernel")] == updates
    kernel, bias = optimizer.layerwise_rates()
    assert records[-2][1:] == (kernel, optimizer.layerwise_rates()[kernel], optimizer.gradient_norms()[kernel])
    assert records[-1][1:] == (bias, "", "")
    assert optimizer.adapted_tensors() == [kernel]


def test_a_tensor_held_at_a_cap_of_one_is_drawn_in_its_place(tmp_path):
    path = tmp_path / run_directory.LAYERWISE_RATES
    path.write_text(
        "update,variable,rate,gradient_norm\n1,a/kernel,1.0,1\n1,a/bias,,1\n1,b/kernel,0.1,1\n1,c/kernel,1.0,1\n"
    )
    assert curves.read_rate_table(path)[1] == ["a/kernel", "b/kernel", "c/kernel"]


def test_a_record_cut_short_is_left_out(tmp_path):
    fit(small_model(LARS(0.1)), callbacks=[LayerwiseRateRecorder(tmp_path / "rates.csv")])
    whole = read_layerwise_rates(tmp_path / "rates.csv")
    with open(tmp_path / "rates.csv", "a") as file:
        file.write("7,d/kern")
    assert read_layerwise_rates(tmp_path / "rates.csv") == whole


def test_recorders_refuse_what_they_cannot_record(tmp_path):
    with pytest.raises(ValueError, match="must be a positive integer or 'epoch'; received every=0"):
        LayerwiseRateRecorder(tmp_path / "rates.csv", 0)
    with pytest.raises(ValueError, match=r"(?i)must have layer-wise rates, as CLARS and LARS do; received sgd"):
        fit(small_model("sgd"), callbacks=[LayerwiseRateRecorder(tmp_path / "rates.csv")])


def write_rates(path, names, updates):
    rng = np.random.default_rng(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["update", "variable", "rate", "gradient_norm"])
        writer.writerows((u, name, 10 ** rng.normal(-2, 1), 1.0) for u in updates for name in names)


@pytest.mark.parametrize(
    ("names", "updates"),
    [([], []), (["d/kernel"], [1]), ([f"layer{i}/kernel" for i in range(110)], [1, 5, 10, 15])],
)
def test_curves_of_no_few_and_many_layers(names, updates, tmp_path):
    recorder = MetricsRecorder(tmp_path / run_directory.METRICS, images_per_epoch=12)
    fit(small_model("sgd"), callbacks=[recorder])
    write_rates(tmp_path / run_directory.LAYERWISE_RATES, names, updates)
    assert plot_curves(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_nan_rate_is_drawn_as_missing(tmp_path):
    fit(small_model("sgd"), callbacks=[MetricsRecorder(tmp_path / run_directory.METRICS, 12)])
    (tmp_path / run_directory.LAYERWISE_RATES).write_text(
        "update,variable,rate,gradient_norm\n1,a/kernel,0.1,1\n1,b/kernel,nan,nan\n2,a/kernel,0.2,1\n"
    )
    plot_curves(tmp_path)


def test_no_metrics_no_curves(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a metrics\.csv"):
        plot_curves(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), run_directory.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
