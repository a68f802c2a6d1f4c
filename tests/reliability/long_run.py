"""Trains a tiny model for many steps with everything on, and watches memory, traces, the time of a step and the rates.

    python tests/reliability/long_run.py --model=large_batch
    KERAS_BACKEND=jax python tests/reliability/long_run.py --model=conadv
    python tests/reliability/long_run.py --publish

The first two write results/long_run/BACKEND_MODEL.csv, one row for every 100 steps. The last draws them in
docs/_static/long_run.png and writes the table of docs/reliability.md.

`large_batch` is LargeBatchModel with sampled norms, micro-batches, accumulation over two steps and the gradient noise
scale; `conadv` is ConAdvModel with a batch that grows and the accuracy under attack after every epoch. Both have CLARS
with an EMA of the weights, L2 decay, a warmup and a clipped gradient, and the callbacks that record and save.
"""

from __future__ import annotations

import argparse
import collections
import csv
import gc
import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import tf_largebatch as lb
from tf_largebatch import callbacks
from tf_largebatch.callbacks.layerwise_values import layerwise_values
from tf_largebatch.conadv.robust_accuracy import RobustAccuracy
from tf_largebatch.plots import style
from tf_largebatch.training.trainer import synchronize

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "results" / "long_run"
PICTURE = ROOT / "docs" / "_static" / "long_run.png"
PAGE = ROOT / "docs" / "reliability.md"
MODELS = ("large_batch", "conadv")
BATCH, STEPS_PER_EPOCH = 8, 100
# Calls of the network in Python: compiled code makes none, so each is a trace.
_COUNTS: collections.Counter[str] = collections.Counter()


class CountsTraces(keras.layers.Layer):
    """Returns its input and counts how often Python calls it."""

    def call(self, x: Any) -> Any:
        _COUNTS["traces"] += 1
        return x


class Watch(keras.callbacks.Callback):
    """Takes one row of measurements after every epoch.

    Attributes:
        rows: `step`, `resident_mb` (memory of the process in MiB), `objects` (that Python's collector knows), `traces`
            and `compilations` so far (the latter on JAX), `cpu_ms` (processor time of a step), `lowest_rate`,
            `highest_rate` (layer-wise rates of CLARS) and `loss`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._steps, self._begin, self._end = 0, 0.0, 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self._begin = time.process_time()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reads the clock: validation and the other callbacks come after the last batch."""
        self._steps += 1
        if batch == STEPS_PER_EPOCH - 1:
            synchronize(self.model)
            self._end = time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes the row."""
        gc.collect()
        rates = [value.rate for value in layerwise_values(self.model).values() if value.rate is not None]
        row = {
            "step": self._steps,
            "resident_mb": resident_mb(),
            "objects": len(gc.get_objects()),
            "traces": _COUNTS["traces"],
            "compilations": _COUNTS["compilations"],
            "cpu_ms": 1000 * (self._end - self._begin) / STEPS_PER_EPOCH,
            "lowest_rate": min(rates),
            "highest_rate": max(rates),
            "loss": (logs or {})["loss"],
        }
        self.rows.append(row)


class AccuracyUnderAttack(keras.callbacks.Callback):
    """Logs the accuracy under attack after every epoch, with one compiled program."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self._data, self._measured = [(images, labels)], None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Logs it."""
        if self._measured is None:
            self._measured = RobustAccuracy(self.model.model, _loss(), value_range=(0.0, 1.0))
        logs["robust_accuracy"] = self._measured(self._data)


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(kind: str, steps: int) -> list[dict[str, float]]:
    """Trains one of MODELS for so many steps and returns the rows of `Watch`."""
    _COUNTS.clear()
    if keras.backend.backend() == "jax":
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(_count_compilation)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    # The class is the row of four that is brighter than the others.
    labels = rng.integers(0, 4, BATCH * STEPS_PER_EPOCH)
    images = rng.uniform(0, 0.8, (len(labels), 4, 2, 8, 1))
    images[np.arange(len(labels)), labels] += 0.2
    images = images.reshape(-1, 8, 8, 1).astype("float32")
    watch, epochs = Watch(), steps // STEPS_PER_EPOCH
    with tempfile.TemporaryDirectory() as directory:
        model, special = _model(kind, images, labels, epochs, pathlib.Path(directory))
        model.fit(
            images,
            labels,
            batch_size=BATCH,
            epochs=epochs,
            validation_data=(images[:64], labels[:64]),
            verbose=0,
            callbacks=[*special, *_recorders(pathlib.Path(directory), len(images)), watch],
        )
    return watch.rows


def _model(
    kind: str, images: np.ndarray, labels: np.ndarray, epochs: int, directory: pathlib.Path
) -> tuple[keras.Model, list[Any]]:
    """The compiled model, and the callbacks that only it has."""
    layers = [
        keras.layers.Conv2D(8, 3, 2, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("gelu"),
        CountsTraces(),
        keras.layers.Dropout(0.2),
        keras.layers.Flatten(),
        keras.layers.Dense(4),
    ]
    network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    schedule = lb.WarmupPolynomialDecay(0.1, epochs * STEPS_PER_EPOCH, warmup_steps=50, end_learning_rate=0.001)
    arguments = {"weight_decay_rate": 1e-4, "use_ema": True, "ema_momentum": 0.99, "global_clipnorm": 10.0}
    special: list[Any]
    if kind == "large_batch":
        arguments["gradient_accumulation_steps"] = 2
        model = lb.LargeBatchModel(network, norm_examples=2, micro_batch_size=4)
        special = [callbacks.GradientNoiseScale(directory / "noise.csv")]
    else:
        model = lb.ConAdvModel(network, value_range=(0.0, 1.0), norm_examples=4, num_steps=2)
        grow = callbacks.GrowBatchSize(4 * BATCH, schedule={0: BATCH, max(epochs // 2, 1): 2 * BATCH})
        special = [grow, AccuracyUnderAttack(images[:32], labels[:32])]
    model.compile(lb.CLARS(schedule, **arguments), _loss(), metrics=["accuracy"])
    return model, special


def _recorders(directory: pathlib.Path, images_per_epoch: int) -> list[Any]:
    return [
        callbacks.LayerwiseProgress(every=50),
        callbacks.LayerwiseRateRecorder(directory / "rates.csv", every=50, batch_gradient_norms=True),
        callbacks.MetricsRecorder(directory / "metrics.csv", images_per_epoch),
        callbacks.RunCheckpoint(directory / "checkpoints"),
    ]


def _loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _count_compilation(event: str, *_: Any, **__: Any) -> None:
    if event.endswith("backend_compile_duration"):
        _COUNTS["compilations"] += 1


def drift(rows: Sequence[dict[str, float]], column: str, warmup: float = 0.25) -> tuple[float, float]:
    """How much a column changes from the end of the warmup to the last row, by a line through its means.

    Args:
        rows: What `run` returns.
        column: The column.
        warmup: Share of the rows that is left out: caches fill and files grow to their size.

    Returns:
        The change, and its standard error from the scatter of ten means about the line.
    """
    values = [row[column] for row in rows[int(warmup * len(rows)) :]]
    blocks = np.array([block.mean() for block in np.array_split(np.array(values), 10)])
    at = np.arange(10.0) - 4.5
    slope = (at * blocks).sum() / (at**2).sum()
    scatter = math.sqrt(((blocks - blocks.mean() - slope * at) ** 2).sum() / 8)
    return 10 * slope, 10 * scatter / math.sqrt((at**2).sum())


def check(rows: Sequence[dict[str, float]]) -> None:
    """Checks what a long run must hold; growth counts where it is more than three standard errors.

    Args:
        rows: What `run` returns.

    Raises:
        AssertionError: If memory or objects grow, the step is traced or compiled again after the first 100 steps, the
            steps of the last quarter take 1.5 times as long as those of the first, or a rate or loss is not finite.
    """
    for column, what, tolerated in (("resident_mb", "memory grows", 4.0), ("objects", "objects grow", 200.0)):
        change, error = drift(rows, column)
        assert change <= max(3 * error, tolerated), f"{what} by {change:.1f} +- {error:.1f}"
    for column, what in (("traces", "traced"), ("compilations", "compiled")):
        assert rows[-1][column] == rows[0][column], f"{what} again: {[row[column] for row in rows]}"
    first, last = times(rows)
    assert last < 1.5 * first, f"a step takes {last:.2f} ms after {first:.2f} ms"
    for column in ("lowest_rate", "highest_rate", "loss"):
        assert np.isfinite([row[column] for row in rows]).all(), f"{column} is not finite"


def times(rows: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Processor time of a step in the first and in the last quarter, without the row that compiles, in ms.

    Of each quarter the tenth percentile: other programs slow a step down, and never speed it up.
    """
    values = [row["cpu_ms"] for row in rows[1:]]
    quarter = len(values) // 4
    return float(np.quantile(values[:quarter], 0.1)), float(np.quantile(values[-quarter:], 0.1))


def read(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a file that this program wrote."""
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def table() -> str:
    """The table of the page: one line for each file of results/long_run."""
    lines = [
        "| backend, model | steps | memory at the end | its change | objects | traces (compilations) after the first "
        "100 steps | time of a step, first and last quarter | layer-wise rates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.csv")):
        rows = read(path)
        backend, kind = path.stem.split("_", 1)
        memory, memory_error = drift(rows, "resident_mb")
        objects, objects_error = drift(rows, "objects")
        first, last = times(rows)
        compiled = f" ({rows[-1]['compilations'] - rows[0]['compilations']:.0f})" if backend == "jax" else ""
        rates = min(row["lowest_rate"] for row in rows), max(row["highest_rate"] for row in rows)
        lines.append(
            f"| {backend}, {kind} | {rows[-1]['step']:,.0f} | {rows[-1]['resident_mb']:.0f} MiB "
            f"| {memory:+.2f} ± {memory_error:.2f} MiB | {objects:+.0f} ± {objects_error:.0f} "
            f"| {rows[-1]['traces'] - rows[0]['traces']:.0f}{compiled} | {first:.2f}, {last:.2f} ms "
            f"| {rates[0]:.2g} to {rates[1]:.2g} |"
        )
    return "\n".join(lines)


def filled(text: str) -> str:
    """Returns the page with the table between its comments."""
    return re.sub(
        r"(<!-- table: long runs -->)\n.*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{table()}\n{found[2]}",
        text,
        flags=re.DOTALL,
    )


def draw() -> None:
    """Draws memory and the time of a step over the steps, one line for each file of results/long_run."""
    with style.settings():
        figure = style.new_figure(11, 4)
        memory, time_of_step = figure.subplots(1, 2)
        for path, colour, marker in zip(sorted(RESULTS.glob("*.csv")), style.COLOURS, style.MARKERS, strict=False):
            rows = read(path)[1:]
            steps = [row["step"] / 1000 for row in rows]
            line = {"color": colour, "marker": marker, "markevery": max(len(rows) // 10, 1), "markersize": 5}
            memory.plot(steps, [row["resident_mb"] for row in rows], label=path.stem.replace("_", ", ", 1), **line)
            time_of_step.plot(steps, [row["cpu_ms"] for row in rows], **line)
        for axes, title in ((memory, "Memory of the process, MiB"), (time_of_step, "Processor time of a step, ms")):
            axes.set_title(title)
            axes.set_xlabel("thousand steps")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=4)
        style.save(figure, PICTURE)


def main() -> None:
    """Runs one model, or publishes what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--publish", action="store_true")
    arguments = parser.parse_args()
    if arguments.publish:
        draw()
        PAGE.write_text(filled(PAGE.read_text()))
        return
    rows = run(arguments.model, arguments.steps)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with open(arguments.output / f"{keras.backend.backend()}_{arguments.model}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


if __name__ == "__main__":
    main()
