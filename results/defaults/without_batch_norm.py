"""CLARS on networks without batch normalization: trust coefficient, caps of the rates and of the agreement. Digits.

    python results/defaults/without_batch_norm.py

runs what `without_batch_norm.jsonl` lacks, one run a line, and writes `without_batch_norm.md` and `.png`. Settings are
chosen by 300 held-out training images and seeds 0 to 2; what is chosen is trained again with seeds 3 to 5, and these
runs alone meet the test images. The settings are variables of one traced step for each network and batch size.

TensorFlow only: on JAX a variable of TensorFlow is no hyper-parameter.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_largebatch as lb
from tf_largebatch.plots import style

HERE = pathlib.Path(__file__).parent
RUNS = HERE / "without_batch_norm.jsonl"
UPDATES = 96
SEEDS, NEW_SEEDS = (0, 1, 2), (3, 4, 5)
ETAS, CAPS = (0.25, 0.35, 0.5), (1.0, 1.5, 2.0, 3.0, None)

# Trust coefficient, cap of the rates, cap of the agreement, constant learning rate or None for a line from 1 to 0.
Setting = tuple[float, float | None, float | None, float | None]
GRID: list[Setting] = [(eta, cap, None, None) for eta in ETAS for cap in CAPS]
CAPPED: list[Setting] = [(0.5, cap, 0.1, None) for cap in (2.0, 3.0, None)] + [(0.5, 3.0, 0.06, None)]
CONSTANT: list[Setting] = [(0.25, 1.0, None, 0.3), *((0.5, 3.0, 0.1, rate) for rate in (0.2, 0.3, 0.5))]
FORMER: Setting = (0.25, 1.0, None, None)
CHOSEN: list[Setting] = [(0.5, 3.0, 0.1, None), (0.5, 3.0, 0.1, 0.2)]


def convolutions() -> keras.Model:
    """Builds two convolutions and a dense layer."""
    made = [keras.Input((8, 8, 1)), *[layers.Conv2D(filters, 3, activation="relu") for filters in (32, 64)]]
    return keras.Sequential([*made, layers.Flatten(), layers.Dense(10)])


def dense() -> keras.Model:
    """Builds three dense layers."""
    made = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(64, "relu")]
    return keras.Sequential([*made, layers.Dense(10)])


def layer_norm() -> keras.Model:
    """Builds two convolutions with layer normalization and a dense layer."""
    made = [keras.Input((8, 8, 1))]
    for filters, strides in ((16, 1), (32, 2)):
        made += [layers.Conv2D(filters, 3, strides=strides), layers.LayerNormalization(), layers.ReLU()]
    return keras.Sequential([*made, layers.Flatten(), layers.Dense(10)])


NETWORKS: dict[str, Callable[[], keras.Model]] = {"conv2": convolutions, "dense": dense, "layer_norm": layer_norm}


def images() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the digits in three parts, pixels from 0 to 1."""
    digits = load_digits()
    pixels = (digits.images[..., None] / 16).astype("float32")
    x, x_test, y, y_test = train_test_split(pixels, digits.target, random_state=0)
    x, x_validation, y, y_validation = train_test_split(x, y, test_size=300, random_state=0)
    return {"training": (x, y), "validation": (x_validation, y_validation), "test": (x_test, y_test)}


class Trainer:
    """Trains one network at one batch size with any setting."""

    def __init__(self, network: str, batch_size: int) -> None:
        self._build, self._batch_size, self._parts = NETWORKS[network], batch_size, images()
        self._model, self._optimizer = lb.LargeBatchModel(self._build()), lb.CLARS(1.0)
        self._numbers = {name: tf.Variable(1.0) for name in ("eta", "max_rate", "max_agreement")}
        for name, variable in self._numbers.items():
            setattr(self._optimizer, name, variable)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._model.compile(self._optimizer, loss, jit_compile=False)
        x, y = self._parts["training"]
        self._model.train_on_batch(x[:batch_size], y[:batch_size])
        self._predict = tf.function(lambda x: self._model(x, training=False))

    def run(self, setting: Setting, seed: int, part: str) -> float:
        """Trains once and returns the accuracy on a part of the images."""
        eta, cap, agreement, constant = setting
        values = {"eta": eta, "max_rate": cap or 1e9, "max_agreement": agreement or 1e9}
        for name, value in values.items():
            self._numbers[name].assign(value)
        keras.utils.set_random_seed(seed)
        self._model.set_weights(self._build().get_weights())
        for variable in self._optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        x, y = self._parts["training"]
        random, size = np.random.default_rng(seed), self._batch_size
        order = np.concatenate([random.permutation(len(x)) for _ in range(UPDATES * size // len(x) + 1)])
        for step in range(UPDATES):
            self._optimizer.learning_rate.assign(1 - step / UPDATES if constant is None else constant)
            batch = order[step * size : (step + 1) * size]
            self._model.train_on_batch(x[batch], y[batch])
        x, y = self._parts[part]
        return float(np.mean(np.argmax(self._predict(x), -1) == y))


def wanted() -> Iterable[tuple[str, int, Setting, int, str]]:
    """Yields every run: network, batch size, setting, seed and the images that it meets."""
    for batch_size in (128, 512):
        for network in NETWORKS:
            settings = [*(GRID if batch_size == 128 else [FORMER]), *CAPPED, *CONSTANT]
            yield from ((network, batch_size, s, seed, "validation") for s in settings for seed in SEEDS)
            yield from ((network, batch_size, s, seed, "test") for s in CHOSEN for seed in NEW_SEEDS)


def read() -> dict[tuple[Any, ...], float]:
    """Returns the accuracies of the runs that are done."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(r["network"], r["batch_size"], tuple(r["setting"]), r["seed"], r["part"]): r["accuracy"] for r in rows}


def run_all() -> None:
    """Runs what is not done."""
    done, trainers = read(), {}
    for network, batch_size, setting, seed, part in wanted():
        if (network, batch_size, setting, seed, part) in done:
            continue
        if (network, batch_size) not in trainers:
            trainers[network, batch_size] = Trainer(network, batch_size)
        accuracy = trainers[network, batch_size].run(setting, seed, part)
        row = {"network": network, "batch_size": batch_size, "setting": setting, "seed": seed, "part": part}
        with RUNS.open("a") as file:
            file.write(json.dumps({**row, "accuracy": accuracy}) + "\n")


def found(
    done: dict[tuple[Any, ...], float], setting: Setting, network: str, batch_size: int, part: str
) -> list[float]:
    """Returns the accuracies of a setting in percent."""
    return [100 * value for (*key, _, of), value in done.items() if (*key, of) == (network, batch_size, setting, part)]


def markdown(done: dict[tuple[Any, ...], float]) -> str:
    """Returns the tables."""
    columns = [(network, batch_size) for network in NETWORKS for batch_size in (128, 512)]
    lines = ["# Without batch normalization", "", "Digits, 96 updates; see without_batch_norm.py. Accuracy in percent:"]
    lines += ["mean (worst) of three seeds. Agreement: `max_agreement`. The grid was run at batch 128 alone."]
    lines += ["An empty cell was not run: the command goes on."]
    titles = {"validation": "Chosen by validation images", "test": "Test images, new seeds"}
    for part, title in titles.items():
        lines += ["", f"## {title}", "", "| eta | cap | agreement | learning rate | "]
        lines[-1] += " | ".join(f"{network} {batch_size}" for network, batch_size in columns) + " |"
        lines.append("|---" * (4 + len(columns)) + "|")
        for setting in dict.fromkeys(key[2] for key in done if key[4] == part):
            eta, cap, agreement, constant = setting
            cells = [found(done, setting, *column, part) for column in columns]
            said = [f"{statistics.mean(c):.1f} ({min(c):.1f})" if len(c) == 3 else "" for c in cells]
            shown = [str(eta), str(cap or "none"), str(agreement or "none"), str(constant or "1 to 0")]
            lines.append(f"| {' | '.join([*shown, *said])} |")
    return "\n".join(lines) + "\n"


def picture(done: dict[tuple[Any, ...], float]) -> Any:
    """Draws the validation accuracy at batch 128 over the cap, a panel a network."""
    with style.settings():
        figure = style.new_figure(13, 4.6)
        axes = figure.subplots(1, 3, sharey=True)
        lines = [(eta, None) for eta in ETAS] + [(0.5, 0.1)]
        for axis, network in zip(axes, NETWORKS, strict=True):
            for number, (eta, agreement) in enumerate(lines):
                values = [found(done, (eta, cap, agreement, None), network, 128, "validation") for cap in CAPS]
                means = [statistics.mean(v) if v else math.nan for v in values]
                label = f"eta {eta:g}" + (f", agreement at most {agreement:g}" if agreement else "")
                axis.plot(means, marker=style.MARKERS[number], color=style.COLOURS[number], label=label)
            axis.set_xticks(range(len(CAPS)), [f"{cap:g}" if cap else "none" for cap in CAPS])
            axis.set_title(network.replace("_", " "))
            axis.set_xlabel("cap of the rates, max_rate")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("validation accuracy, %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def main() -> None:
    """Runs what is missing and writes the report."""
    run_all()
    done = read()
    (HERE / "without_batch_norm.md").write_text(markdown(done))
    style.save(picture(done), HERE / "without_batch_norm.png")


if __name__ == "__main__":
    main()
