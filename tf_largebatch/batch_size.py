"""Answers "which batch size can I use?": python -m tf_largebatch.batch_size --model=MODEL --dataset=DATASET [flags].

It trains for a minute and measures the gradient noise scale, finds the largest batch that fits into memory at once, and
prints a table of batch sizes: how many updates and examples training takes with each, the micro-batch it needs, and the
learning rate. It leaves batch_size.json and batch_size.png in --output_dir. The flags of model, data and optimizer are
those of tf_largebatch.train.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags

from tf_largebatch.callbacks import GradientNoiseScale
from tf_largebatch.callbacks.noise_scale import readable_noise_scale
from tf_largebatch.check import require
from tf_largebatch.core.micro_batch_sizes import largest_size
from tf_largebatch.files import write_json
from tf_largebatch.plots.batch_sizes import plot_batch_sizes
from tf_largebatch.train import TrainConfig, command_line
from tf_largebatch.train.optimizers import SCALINGS, OptimizerConfig
from tf_largebatch.train.prepare import Run, prepare
from tf_largebatch.training.batch_memory import batch_memory
from tf_largebatch.training.memory_limit import BatchMemory, power_of_two_below, readable
from tf_largebatch.training.trainer import synchronize

DATA_FLAGS = ("dataset", "data_dir", "download", "eval_split", "validation_examples", "augment", "image_size")
MODEL_FLAGS = ("model", "weights", "mixed_precision")
OPTIMIZER_FLAGS = (
    *("optimizer", "base_learning_rate", "base_batch_size", "scaling", "momentum", "weight_decay_rate", "clip_norm"),
    *("eta", "max_rate", "unadapted_rate_factor", "norm_exponent", "max_agreement", "classic_momentum"),
)
FLAGS = (*DATA_FLAGS, *MODEL_FLAGS, *OPTIMIZER_FLAGS, "label_smoothing", "norm_examples", "seed", "output_dir")
SMALLEST = 16  # of the table
READINGS = 60


@dataclasses.dataclass(frozen=True)
class Row:
    """What a batch size means.

    Attributes:
        batch_size: Examples of an update.
        micro_batch_size: Examples that must run at a time for it to fit; None if all do.
        learning_rate: The peak learning rate of the command line's defaults.
        updates: Updates that training takes, in units of the fewest possible, `1 + noise / batch`; None without a
            noise scale.
        examples: Examples that training takes, in units of the fewest possible, `1 + batch / noise`.
    """

    batch_size: int
    micro_batch_size: int | None
    learning_rate: float
    updates: float | None
    examples: float | None


@dataclasses.dataclass(frozen=True)
class Answer:
    """Which batch size can be used.

    Attributes:
        noise_scale: Median over the second half of the run, in examples; inf where the gradient is lost in the noise.
        updates: The updates at which it was read.
        noise_scales: What was read.
        memory: What a step takes.
        rows: A row for each batch size.
        advised: The power of two nearest to the noise scale, at most the training examples.
    """

    noise_scale: float
    updates: Sequence[int]
    noise_scales: Sequence[float]
    memory: BatchMemory
    rows: Sequence[Row]
    advised: int


class _Watch(keras.callbacks.Callback):
    """Reads the noise scale from time to time and ends the run after some seconds or updates."""

    def __init__(self, noise_scale: GradientNoiseScale, seconds: float, updates: int) -> None:
        super().__init__()
        self._noise_scale, self._seconds, self._last = noise_scale, seconds, updates
        self._every = max(updates // READINGS, 1)
        self._done, self._begin = 0, math.inf
        self.updates: list[int] = []
        self.noise_scales: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Reads and ends."""
        now = time.monotonic()
        if not self._done:
            self._begin = now  # without the time to compile
        self._done += 1
        ends = self._done >= self._last or now - self._begin > self._seconds
        if self._done % self._every == 0 or ends:
            synchronize(self.model)
            self.updates.append(self._done)
            self.noise_scales.append(self._noise_scale.of_network().noise_scale)
        if ends:
            self.model.stop_training = True


def measure(run: Run, seconds: float = 60.0, updates: int = 300) -> Answer:
    """Trains a prepared run for a while and finds out which batch sizes suit it.

    Args:
        run: The run, whose model measures per-example norms; its weights change.
        seconds: The longest time to train, without compiling.
        updates: The most updates.
    """
    config, dataset, model = run.config, run.dataset, run.model
    noise_scale = GradientNoiseScale()
    watch = _Watch(noise_scale, seconds, updates)
    steps = run.steps_per_epoch
    epochs = -(-updates // steps)
    batches = dataset.train(config.run.batch_size, config.run.seed, 0, epochs)
    settings = {"steps_per_epoch": steps, "epochs": epochs, "verbose": 0, "shuffle": False}
    model.fit(batches, callbacks=[noise_scale, watch], **settings)
    late = [value for value in watch.noise_scales[len(watch.noise_scales) // 2 :] if not math.isnan(value)]
    found = statistics.median(late) if late else math.nan
    batch = [np.asarray(t) for t in next(iter(dataset.train(config.run.batch_size, config.run.seed, 0, 1)))]
    most = power_of_two_below(dataset.train_size)
    memory = batch_memory(model, batch, most)
    sizes = [2**i for i in range(int(math.log2(min(SMALLEST, most))), int(math.log2(most)) + 1)]
    rows = [_row(size, found, memory, config.optimizer) for size in sizes]
    return Answer(found, watch.updates, watch.noise_scales, memory, rows, _advised(found, most))


def _row(size: int, noise: float, memory: BatchMemory, optimizer: OptimizerConfig) -> Row:
    assert optimizer.scaling is not None and optimizer.base_learning_rate is not None  # they are resolved
    rate = SCALINGS[optimizer.scaling](optimizer.base_learning_rate, size, optimizer.base_batch_size)
    fits = memory.largest or 1
    known = math.isfinite(noise) and noise > 0
    return Row(
        size,
        None if size <= fits else largest_size(size, fits),
        rate,
        1 + noise / size if known else None,
        1 + size / noise if known else None,
    )


def _advised(noise: float, most: int) -> int:
    """Returns the power of two nearest to the noise scale."""
    if math.isnan(noise) or noise >= most:
        return most
    return 2 ** round(math.log2(max(noise, 1)))


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text."""
    lines = [f"{'batch':>8} {'micro-batch':>12} {'learning rate':>14} {'updates':>9} {'examples':>9}"]
    for row in rows:
        costs = ["?" if value is None else f"x {value:.3g}" for value in (row.updates, row.examples)]
        micro = row.micro_batch_size or "-"
        lines.append(f"{row.batch_size:>8} {micro:>12} {row.learning_rate:>14.4g} {costs[0]:>9} {costs[1]:>9}")
    return "\n".join(lines)


def write(answer: Answer, run: Run) -> None:
    """Writes batch_size.json and batch_size.png to the run's directory."""
    config = run.config
    run.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        run.output_dir / "batch_size.json",
        {
            "arguments": config.stored(),
            "backend": keras.backend.backend(),
            "noise_scale": _json(answer.noise_scale),
            "run": {"updates": list(answer.updates), "noise_scales": [_json(v) for v in answer.noise_scales]},
            "memory": dataclasses.asdict(answer.memory),
            "batch_sizes": [dataclasses.asdict(row) for row in answer.rows],
            "advised": answer.advised,
        },
    )
    plot_batch_sizes(
        run.output_dir / "batch_size.png",
        answer.updates,
        answer.noise_scales,
        [row.batch_size for row in answer.rows],
        answer.noise_scale,
        answer.memory.largest,
        answer.advised,
        f"{config.model.name} on {run.dataset.name}",
    )


def _json(value: float) -> float | None:
    """Returns a number as JSON holds it: none for inf and NaN."""
    return value if math.isfinite(value) else None


def report(answer: Answer, run: Run) -> str:
    """Returns what the program prints."""
    memory, count = answer.memory, answer.updates[-1]
    after = f"after {count} updates of {run.config.run.batch_size}"
    late = [v for v in answer.noise_scales[len(answer.noise_scales) // 2 :] if math.isfinite(v)]
    if math.isfinite(answer.noise_scale):
        among = f" ({readable_noise_scale(min(late))} to {readable_noise_scale(max(late))} in the second half)"
        lines = [f"Gradient noise scale: {readable_noise_scale(answer.noise_scale)} examples {after}{among}."]
    else:
        lines = [f"Gradient noise scale {after}: {readable_noise_scale(answer.noise_scale)}."]
    takes = f"{readable(memory.fixed)} and {readable(memory.of_example)} an example, of {readable(memory.limit)}"
    fits = f"At once fit: {_fitting(memory, answer.rows[-1].batch_size)}"
    lines += [f"{fits} (a step takes {takes}; {memory.how}).", "", table(answer.rows), ""]
    advice = f"Try --batch_size={answer.advised}"
    row = next((row for row in answer.rows if row.batch_size == answer.advised), None)
    if row is not None and row.micro_batch_size:
        advice += f" --micro_batch_size={row.micro_batch_size}"
    return "\n".join([*lines, f"{advice}. The noise scale grows as training goes on: a later look may advise more."])


def _fitting(memory: BatchMemory, most: int) -> str:
    """Says how many examples fit, in words; beyond the largest batch that was asked about, by the straight line."""
    if memory.largest is None:
        return "not even one example"
    if memory.largest < most or not memory.of_example:
        return f"{memory.largest:,} examples"
    by_line = (memory.limit - memory.fixed) / memory.of_example
    return f"about {float(f'{by_line:.2g}'):,.0f} examples"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags."""
    command_line.define_flags(values, FLAGS)
    flags.DEFINE_integer("batch_size", None, "Images of an update of the short run; default: 256.", flag_values=values)
    flags.DEFINE_float("seconds", 60.0, "The longest time to train, without compiling.", flag_values=values)
    flags.DEFINE_integer("updates", 300, "The most updates to train.", flag_values=values)


def _run(values: flags.FlagValues) -> None:
    given: dict[str, Any] = {name: values[name].value for name in (*FLAGS, "batch_size", "seconds", "updates")}
    seconds, updates, batch_size = (given.pop(name) for name in ("seconds", "updates", "batch_size"))
    require(0 < seconds < math.inf, "seconds", seconds, "above 0 and finite")
    require(updates >= 2, "updates", updates, "2 or more")
    require(batch_size is None or batch_size >= 2, "batch_size", batch_size, "2 or more, to tell noise from gradient")
    config = TrainConfig.from_flags(**given, batch_size=batch_size or 256, noise_scale=True, verbose=0)
    run = prepare(config)
    answer = measure(run, seconds, updates)
    write(answer, run)
    print(report(answer, run))
    print(f"Output: {run.output_dir}")


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the program; returns the exit status."""
    return command_line.reported(argv, lambda: _run(values))


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(sys.modules["tf_largebatch.train.command_line"])
    app.run(main)
