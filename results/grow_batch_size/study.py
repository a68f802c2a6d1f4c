"""A batch that grows with the noise scale against fixed batches, at equal examples and at equal updates.

    KERAS_BACKEND=jax python results/grow_batch_size/study.py --data_dir=DIR

DIR holds Fashion-MNIST's four idx.gz files. It leaves runs.csv, table.md and batch_sizes.png beside this
file; some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import pathlib
import statistics
from typing import Any

import keras
import numpy as np

import tf_largebatch as lb
from tf_largebatch.callbacks import GradientNoiseScale, GrowBatchSize
from tf_largebatch.plots import style
from tf_largebatch.training.trainer import synchronize

HERE = pathlib.Path(__file__).parent
SMALL, LARGE = 64, 1024
TRAINING, HELD_OUT = 12_000, 5_000
EPOCHS = 10  # at equal examples
UPDATES = 400  # at equal updates
RATES = (0.03, 0.1, 0.3)
SEEDS = (1, 2, 3)
ARMS = {
    "small": f"fixed, {SMALL}",
    "decay": f"fixed, {SMALL}, rate falls to 0",
    "large": f"fixed, {LARGE}",
    "noise": f"noise scale, {SMALL} to {LARGE}",
    "schedule": f"schedule, {SMALL} to {LARGE}",
}


def images(directory: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST at 14 pixels, standardized, and its labels."""
    with gzip.open(f"{directory}/{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 14, 2, 14, 2).mean((2, 4))
    with gzip.open(f"{directory}/{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return ((pixels - 73) / 83).reshape(-1, 196).astype("float32"), labels.astype("int32")


class Stop(keras.callbacks.Callback):
    """Stops after a number of updates."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates = updates

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reads the number of updates after every batch."""
        synchronize(self.model)
        self.model.stop_training = int(self.model.optimizer.iterations) >= self.updates


def train(arm: str, rate: float, seed: int, equal: str, data: Any, evaluation: Any) -> dict[str, Any]:
    """One run; returns its row."""
    keras.utils.set_random_seed(seed)
    layers: list[Any] = [keras.Input((196,))]
    for units in (128, 64):
        layers += [keras.layers.Dense(units), keras.layers.LayerNormalization(), keras.layers.ReLU()]
    model = lb.LargeBatchModel(keras.Sequential([*layers, keras.layers.Dense(10)]), norm_examples=64)
    batch = LARGE if arm == "large" else SMALL
    updates = EPOCHS * (TRAINING // batch) if equal == "examples" else UPDATES
    schedule: Any = lb.WarmupPolynomialDecay(rate, total_steps=updates, power=1.0) if arm == "decay" else rate
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), loss, metrics=["accuracy"], jit_compile=True)
    grow = None
    if arm == "noise":
        grow = GrowBatchSize(maximum=LARGE, minimum=SMALL, every=20)
    if arm == "schedule":  # as often doubled, at equal distances
        grow = GrowBatchSize(maximum=LARGE, schedule={2 * i: SMALL * 2**i for i in range(5)})
    callbacks: list[Any] = [GradientNoiseScale(), *([grow] if grow else [])]
    if equal == "updates":
        callbacks.append(Stop(UPDATES))
    x, y = data
    steps = TRAINING // batch
    order = np.concatenate([np.random.default_rng((seed, epoch)).permutation(TRAINING) for epoch in range(60)])

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return steps

        def __getitem__(self, index: int) -> Any:
            start = (self.epoch * steps + index) * batch
            chosen = order[start : start + batch]
            return x[chosen], y[chosen]

        epoch = 0

        def on_epoch_end(self) -> None:
            self.epoch += 1

    epochs = EPOCHS if equal == "examples" else 10_000
    history = model.fit(Batches(), epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    done = len(history.history["loss"])
    _, accuracy = model.evaluate(*evaluation, batch_size=1000, verbose=0)
    sizes = history.history.get("batch_size", [batch] * done)
    return {
        "arm": arm,
        "equal": equal,
        "rate": rate,
        "seed": seed,
        "accuracy": accuracy,
        "updates": int(model.optimizer.iterations),
        "epochs": done,
        "batch_sizes": json.dumps(sizes),
        "noise_scales": json.dumps([round(float(v), 1) for v in history.history["noise_scale"]]),
    }


def table(rows: list[dict[str, Any]], rates: dict[str, float]) -> str:
    """The table of results."""
    titles = ["batch of an update", "rate", "equal examples: % (sd)", "updates", "equal updates: % (sd)", "epochs"]
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|---|---|---|"]
    for arm, name in ARMS.items():
        cells = [name, f"{rates[arm]:g}"]
        for equal, count in (("examples", "updates"), ("updates", "epochs")):
            some = [row for row in rows if row["arm"] == arm and row["equal"] == equal]
            found = [100 * row["accuracy"] for row in some]
            cells += [f"{statistics.mean(found):.1f} ({statistics.stdev(found):.1f})"]
            cells += [f"{statistics.mean(row[count] for row in some):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> None:
    """The batch over the epochs beside the noise scale, and the accuracies."""
    with style.settings():
        figure = style.new_figure(15, 6.4)
        left, right = figure.subplots(1, 2)
        for arm, colour, marker in zip(ARMS, style.COLOURS, style.MARKERS, strict=False):
            some = [row for row in rows if row["arm"] == arm and row["equal"] == "examples"]
            sizes = np.mean([json.loads(row["batch_sizes"]) for row in some], axis=0)
            if arm != "decay":
                left.plot(range(1, EPOCHS + 1), sizes, color=colour, marker=marker, lw=2, label=f"batch: {ARMS[arm]}")
            if arm in ("noise", "small"):
                noise = np.median([json.loads(row["noise_scales"]) for row in some], axis=0)
                left.plot(
                    range(1, EPOCHS + 1),
                    noise,
                    color=colour,
                    marker=marker,
                    mfc="none",
                    ls=":",
                    label=f"noise scale: {ARMS[arm]}",
                )
        left.set_yscale("log", base=2)
        left.yaxis.set_major_formatter("{x:g}")
        left.set_xlabel("epoch")
        left.set_ylabel("examples")
        left.set_title("Batch of an update, equal examples")
        for place, equal in enumerate(("examples", "updates")):
            for number, (arm, colour, marker) in enumerate(zip(ARMS, style.COLOURS, style.MARKERS, strict=False)):
                found = [100 * row["accuracy"] for row in rows if row["arm"] == arm and row["equal"] == equal]
                at = place + 0.12 * (number - 2)
                label = ARMS[arm] if not place else None
                right.plot([at] * len(found), found, marker, color=colour, ls="", ms=8, label=label)
        right.set_xticks([0, 1], ["equal examples", "equal updates"])
        right.set_xlim(-0.5, 1.5)
        right.set_ylabel("test accuracy, %")
        right.set_title("Test accuracy, three seeds each")
        right.grid(axis="y", alpha=0.25)
        # Below the axes, where a legend covers nothing.
        for axis in (left, right):
            axis.legend(fontsize=12, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        style.save(figure, HERE / "batch_sizes.png")


def main() -> None:
    """Searches the rates on held-out images, then trains with new seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    directory = parser.parse_args().data_dir
    x, y = images(directory, "train")
    test = images(directory, "t10k")
    data, held_out = (x[:TRAINING], y[:TRAINING]), (x[-HELD_OUT:], y[-HELD_OUT:])
    search = [train(arm, rate, 0, "examples", data, held_out) for arm in ARMS for rate in RATES]
    rates = {arm: max((r for r in search if r["arm"] == arm), key=lambda r: r["accuracy"])["rate"] for arm in ARMS}
    print(rates, flush=True)
    rows = []
    for equal in ("examples", "updates"):
        for arm in ARMS:
            for seed in SEEDS:
                rows.append(train(arm, rates[arm], seed, equal, data, test))
                print({k: v for k, v in rows[-1].items() if k not in ("batch_sizes", "noise_scales")}, flush=True)
    with open(HERE / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["search", *rows[0]])
        writer.writeheader()
        writer.writerows([{"search": 1, **row} for row in search] + [{"search": 0, **row} for row in rows])
    (HERE / "table.md").write_text(table(rows, rates))
    draw(rows)


if __name__ == "__main__":
    main()
