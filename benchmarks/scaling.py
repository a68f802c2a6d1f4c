"""How the time of a step grows with batch, micro-batch and replicas: ResNet-20 at 32 px, plain and with CLARS.

    python -m benchmarks.scaling                                   # about three minutes on two cores
    python -m benchmarks.scaling --parts=replicas --json=benchmarks/scaling.json --plot=benchmarks/scaling.png

The plain step is SGD with momentum, the other CLARS with exact norms. Each number of replicas runs in a process of its
own, in which all its steps take turns. Replicas are logical devices of one CPU: they share its cores, so that what is
seen is the price of laying the step out, not a gain.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.norms import versions_and_machine

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Case:
    """A step: images of an update, images of a micro-batch (None: all of a replica's), replicas."""

    batch: int
    micro_batch_size: int | None = None
    replicas: int = 1


PARTS = {
    "batch": [Case(64), Case(128), Case(256), Case(512)],
    "micro_batch": [Case(512, 64), Case(512, 128), Case(512, 256), Case(512)],
    "replicas": [Case(256, 64, 1), Case(256, 64, 2)],
}


def build_step(case: Case, clars: bool, strategy: Any) -> Callable[[], Any]:
    """A compiled step on random images of its own."""
    import keras
    import tensorflow as tf

    import tf_largebatch as lb
    from tf_largebatch import zoo

    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = lb.LargeBatchModel(zoo.build("resnet20", (32, 32, 3), 10), micro_batch_size=case.micro_batch_size)
        optimizer = lb.CLARS(1e-3) if clars else keras.optimizers.SGD(1e-3, momentum=0.9)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        optimizer.build(model.trainable_variables)
    share = case.batch // case.replicas
    images = [tf.random.normal((share, 32, 32, 3)) for _ in range(case.replicas)]
    labels = [tf.random.uniform((share,), 0, 10, tf.int32) for _ in range(case.replicas)]

    def distributed(values: list[Any]) -> Any:
        if case.replicas == 1:
            return values[0]
        return strategy.experimental_distribute_values_from_function(lambda c: values[c.replica_id_in_sync_group])

    data = distributed(images), distributed(labels)
    strategy.run(model.test_step, args=(data,))  # makes the metrics

    @tf.function(autograph=False)
    def step(x: Any, y: Any) -> None:
        strategy.run(model.train_step, args=((x, y),))

    return lambda: step(*data)


def time_cases(cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    """Times the plain and the measured step of cases with one number of replicas, in turns, in this process."""
    import numpy as np

    from tf_largebatch import strategies

    replicas = cases[0].replicas
    strategy = strategies.build("mirrored", replicas) if replicas > 1 else strategies.build("one_device")
    steps = [build_step(case, clars, strategy) for case in cases for clars in (False, True)]
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        for step, some in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if number:  # the first traces
                some.append(time.perf_counter() - start)
    quartiles = np.quantile(times, [0.25, 0.5, 0.75], axis=1).T.tolist()
    return [
        {**dataclasses.asdict(case), "plain_seconds": quartiles[2 * i], "clars_seconds": quartiles[2 * i + 1]}
        for i, case in enumerate(cases)
    ]


def measure(part: str, rounds: int) -> list[dict[str, Any]]:
    """Times a part's cases, each number of replicas in a process of its own."""
    rows = []
    for replicas in sorted({case.replicas for case in PARTS[part]}):
        arguments = [f"--task={part}:{replicas}", f"--rounds={rounds}"]
        command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows += json.loads(output.strip().splitlines()[-1])
    return rows


def plot(report: dict[str, Any], path: str) -> None:
    """Draws milliseconds an image against batch, micro-batch and replicas."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axis_of = {
        "batch": ("batch", "images of an update"),
        "micro_batch": ("micro_batch_size", "images of a micro-batch, of 512"),
        "replicas": ("replicas", "replicas on one CPU, 256 images in micro-batches of 64"),
    }
    figure, axes = plt.subplots(1, len(axis_of), figsize=(12, 3.5), layout="constrained", sharey=True)
    for axis, (part, (key, label)) in zip(axes, axis_of.items(), strict=True):
        for kind, name in (("plain_seconds", "SGD-momentum"), ("clars_seconds", "CLARS, exact norms")):
            rows = report.get(part, [])
            x = [row[key] or row["batch"] for row in rows]
            y = [[1e3 * seconds / row["batch"] for seconds in row[kind]] for row in rows]
            middle = [values[1] for values in y]
            errors = [[v[1] - v[0] for v in y], [v[2] - v[1] for v in y]]
            axis.errorbar(x, middle, errors, marker="o", capsize=3, label=name)
        axis.set_xscale("log", base=2)
        ticks = [row[key] or row["batch"] for row in report.get(part, [])]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel(label)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("milliseconds an image")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> None:
    """Measures, prints tables, writes JSON and plot."""
    del argv
    if FLAGS.task:
        part, replicas = FLAGS.task.split(":")
        cases = [case for case in PARTS[part] if case.replicas == int(replicas)]
        print(json.dumps(time_cases(cases, FLAGS.rounds)))
        return
    path = pathlib.Path(FLAGS.json) if FLAGS.json else None
    report = json.loads(path.read_text()) if path and path.exists() else {}
    report["environment"] = versions_and_machine()
    for part in FLAGS.parts or PARTS:
        report[part] = measure(part, FLAGS.rounds)
        print(f"{part:12} {'batch':>6} {'micro':>6} {'replicas':>8} {'plain s':>9} {'CLARS s':>9} {'ms an image':>12}")
        for row in report[part]:
            plain, clars = row["plain_seconds"][1], row["clars_seconds"][1]
            print(
                f"{'':12} {row['batch']:6} {row['micro_batch_size'] or 'all':>6} {row['replicas']:8} "
                f"{plain:9.3f} {clars:9.3f} {1e3 * clars / row['batch']:12.2f}",
                flush=True,
            )
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n")
    if FLAGS.plot:
        plot(report, FLAGS.plot)


if __name__ == "__main__":
    flags.DEFINE_list("parts", None, f"Of {', '.join(PARTS)}; default: all.")
    flags.DEFINE_integer("rounds", 5, "How often each step is timed.")
    flags.DEFINE_string("json", None, "File to keep the numbers in; other parts' stay.")
    flags.DEFINE_string("plot", None, "Where to draw the numbers.")
    flags.DEFINE_string("task", None, "Used by the program itself.")
    app.run(main)
