"""plot_history: every kind of history, in one picture."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest

from tf_largebatch.callbacks import plot_history


class History:
    def __init__(self, history, epoch=None):
        self.history = history
        self.epoch = epoch


LOGS = {"loss": [2.0, 1.0, 0.5], "val_loss": [2.5, 1.5, 1.0], "accuracy": [0.1, 0.5, 0.6]}


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def lines(figure, title):
    (axis,) = (axis for axis in figure.axes if axis.get_title() == title)
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def write_run(directory, rates=True, metrics=True):
    directory.mkdir(exist_ok=True)
    if metrics:
        (directory / "metrics.csv").write_text(
            "epoch,updates,learning_rate,loss,val_loss,seconds\n1,3,0.5,2.0,2.5,9\n2,6,0.25,1.0,1.5,9\n"
        )
    if rates:
        rng = np.random.default_rng(0)
        with open(directory / "layerwise_rates.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["update", "variable", "rate", "gradient_norm"])
            writer.writerows((u, f"l{k}/kernel", 10 ** rng.normal(-2, 1), 1.0) for u in (1, 3, 6) for k in range(5))
    return directory


def test_what_fit_returns_is_drawn():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(np.ones((4, 2)), np.ones(4), epochs=3, verbose=0, validation_split=0.5)
    figure = plot_history(history)
    assert titles(figure) == ["Loss"]
    assert lines(figure, "Loss") == {
        "training": ([1, 2, 3], history.history["loss"]),
        "validation": ([1, 2, 3], history.history["val_loss"]),
    }


def test_a_continued_history_keeps_its_epochs_and_rare_validation_its_own():
    figure = plot_history(History({"loss": [3.0, 2.0, 1.0], "val_loss": [2.0]}, epoch=[4, 5, 6]))
    assert lines(figure, "Loss") == {"training": ([5, 6, 7], [3.0, 2.0, 1.0]), "validation": ([7], [2.0])}


def test_a_directory_is_drawn_with_its_rates(tmp_path):
    figure = plot_history(write_run(tmp_path / "run"), path=tmp_path / "curves.png")
    assert titles(figure)[:2] == ["Loss", "Learning rate"]
    assert lines(figure, "Learning rate") == {"_child0": ([1, 2], [0.5, 0.25])}
    assert [axis.get_xlabel() for axis in figure.axes].count("update") == 1
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_several_runs_share_axes_and_colour_scale(tmp_path):
    runs = {"LARS": write_run(tmp_path / "a"), "CLARS": write_run(tmp_path / "b"), "SGD": History(LOGS)}
    figure = plot_history(runs)
    (legend,) = [legend for part in figure.subfigs for legend in part.legends]
    assert [text.get_text() for text in legend.get_texts()] == [*runs, "training", "validation"]
    assert set(lines(figure, "Loss")) == {f"{run}: {kind}" for run in runs for kind in ("training", "validation")}
    maps = [axis.collections[0] for axis in figure.axes if axis.get_title().endswith("layer-wise rate")]
    assert len(maps) == 2 and maps[0].get_clim() == maps[1].get_clim()
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert len(set(colours)) == 3


def test_rates_alone_metrics_alone_and_no_rates_on_request(tmp_path):
    alone = plot_history(write_run(tmp_path / "rates", metrics=False))
    assert [axis.get_xlabel() for axis in alone.axes] == ["update", ""]
    assert titles(plot_history(write_run(tmp_path / "metrics", rates=False)))[-1] == "Learning rate"
    figure = plot_history(write_run(tmp_path / "both"), layerwise_rates=False)
    assert all(axis.get_xlabel() == "epoch" for axis in figure.axes)


def test_a_plain_dictionary_of_lists_is_one_run():
    assert titles(plot_history(LOGS)) == ["Loss", "Accuracy"]
    assert titles(plot_history(LOGS, metrics=("accuracy",))) == ["Accuracy"]


def test_adversarial_training_is_drawn_by_stream_and_not_as_a_sum():
    logs = {"loss": [5.0], "clean_loss": [2.0], "adversarial_loss": [3.0], "val_loss": [1.0], "batch_size": [64]}
    figure = plot_history(logs)
    assert titles(figure) == ["Loss", "Batch of an update"]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [2.0, 3.0, 1.0]
    assert len({line.get_linestyle() for line in figure.axes[0].lines}) == 3
    said = [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]
    assert said == ["training", "adversarial", "validation"]


def test_an_infinite_noise_scale_leaves_a_gap():
    figure = plot_history({"loss": [2.0, 1.0], "noise_scale": [900.0, float("inf")]})
    ((_, values),) = lines(figure, "Gradient noise scale").values()
    assert values[0] == 900.0 and np.isnan(values[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: plot_history(path / "missing"),
            r"a directory that holds a metrics\.csv or .*received history=.*neither",
        ),
        (lambda path: plot_history(3), "history must be what fit.. returned, .*; received history=3"),
        (lambda path: plot_history({}), "history must be at least one run"),
        (
            lambda path: plot_history(LOGS, metrics=("f1",)),
            "some of accuracy, loss; received metrics='f1'",
        ),
    ],
)
def test_refusals(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)
