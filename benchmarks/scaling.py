"""How the time of a step grows with batch, micro-batch and replicas: ResNet-20 at 32 px, plain and with CLARS.

    python -m benchmarks.scaling                                   # some minutes on two cores
    python -m benchmarks.scaling --parts=micro_batch --kinds=clars --json=benchmarks/reports/scaling.json
    # Draws only:
    python -m benchmarks.scaling --rounds=0 --json=benchmarks/reports/scaling.json --plot=benchmarks/reports/scaling.png

The plain step is SGD with momentum, the other CLARS with exact norms. The steps of a part and kind take turns in one
process; ratios are those of neighbours to the part's last step, medians with quartiles. Replicas are logical devices of
one CPU: they share its cores, so that what is seen is the price of laying the step out, not a gain.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import harness

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Case:
    """A step: images of an update, images of a micro-batch (None: all of a replica's), replicas."""

    batch: int
    micro_batch_size: int | None = None
    replicas: int = 1


# What the others are compared with stands last.
PARTS = {
    "batch": [Case(64), Case(128), Case(256), Case(512), Case(1024)],
    "micro_batch": [Case(1024, 64), Case(1024, 128), Case(1024, 256), Case(1024)],
    "replicas": [Case(512, 128, 2), Case(512, 128, 1)],
}
KINDS = {"plain": "SGD-momentum", "clars": "CLARS, exact norms"}


def build_step(case: Case, kind: str, strategy: Any) -> Callable[[], Any]:
    """A compiled step on random images of its own."""
    import keras
    import tensorflow as tf

    import tf_largebatch as lb
    from tf_largebatch import models

    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = lb.LargeBatchModel(models.build("resnet20", (32, 32, 3), 10), micro_batch_size=case.micro_batch_size)
        optimizer = lb.CLARS(1e-3) if kind == "clars" else keras.optimizers.SGD(1e-3, momentum=0.9)
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
    strategy.run(model.test_step, args=(tuple(part[:1] for part in (images[0], labels[0])),))  # makes the metrics

    @tf.function(autograph=False)
    def step(x: Any, y: Any) -> None:
        strategy.run(model.train_step, args=((x, y),))

    return lambda: step(*data)


@functools.cache
def build_strategy(replicas: int) -> Any:
    """One of each number in a process: strategies number their collectives, each from the start."""
    from tf_largebatch.distribute import strategies

    return strategies.build("mirrored", replicas) if replicas > 1 else strategies.build("one_device")


def time_cases(cases: list[Case], kind: str, rounds: int) -> list[dict[str, Any]]:
    """Times the steps in turns; milliseconds an image and their ratios to the last step's."""
    # Several replicas first: the CPU cannot be split into logical devices once it has been used.
    strategy_of = {n: build_strategy(n) for n in sorted({case.replicas for case in cases}, reverse=True)}
    steps = [build_step(case, kind, strategy_of[case.replicas]) for case in cases]
    times = harness.interleaved({str(number): step for number, step in enumerate(steps)}, rounds)
    an_image = [[1e3 * t / case.batch for t in some] for case, some in zip(cases, times.values(), strict=True)]
    return [
        {
            **dataclasses.asdict(case),
            "kind": kind,
            **harness.median_and_quartiles("milliseconds_an_image", milliseconds),
            **harness.median_and_quartiles("ratio", harness.ratios(milliseconds, an_image[-1])),
            "rounds": rounds,
        }
        for case, milliseconds in zip(cases, an_image, strict=True)
    ]


def plot(report: dict[str, Any], path: str) -> None:
    """Draws milliseconds an image against batch, micro-batch and replicas."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axis_of = {
        "batch": ("batch", "images of an update, not split"),
        "micro_batch": ("micro_batch_size", "images of a micro-batch, of 1,024"),
        "replicas": ("replicas", "replicas on one CPU, 512 images\nin micro-batches of 128"),
    }
    # Blue and orange of the Okabe-Ito palette, and markers of their own.
    style = {"plain": {"color": "#0072B2", "marker": "o"}, "clars": {"color": "#D55E00", "marker": "s"}}
    figure, axes = plt.subplots(1, len(axis_of), figsize=(12, 3.8), layout="constrained", sharey=True)
    for axis, (part, (key, label)) in zip(axes, axis_of.items(), strict=True):
        ticks = sorted({row[key] or row["batch"] for row in report.get(part, [])})
        for kind, name in KINDS.items():
            rows = [row for row in report.get(part, []) if row["kind"] == kind]
            rows.sort(key=lambda row: row[key] or row["batch"])
            x = [row[key] or row["batch"] for row in rows]
            middle = np.array([row["milliseconds_an_image"] for row in rows])
            spread = np.array([row["milliseconds_an_image_quartiles"] for row in rows]).reshape(-1, 2)
            errors = [middle - spread[:, 0], spread[:, 1] - middle]
            axis.errorbar(x, middle, errors, capsize=3, label=name, **style[kind])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylim(bottom=0)  # of all, once all are drawn
    axes[0].set_ylabel("milliseconds an image")
    axes[0].legend()
    figure.suptitle("A step of ResNet-20 at 32 px on a CPU: median and quartiles, each line measured by itself")
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> None:
    """Measures, prints tables, writes JSON and plot."""
    del argv
    report = harness.read_report(FLAGS.json)
    report["environment"] = harness.versions_and_machine()
    # As in time_cases.
    order = sorted(FLAGS.parts, key=lambda part: -max(case.replicas for case in PARTS[part]))
    for part, kind in [(part, kind) for part in order for kind in FLAGS.kinds if FLAGS.rounds]:
        rows = time_cases(PARTS[part], kind, FLAGS.rounds)
        report[part] = [row for row in report.get(part, []) if row["kind"] != kind] + rows
        print(f"{part}, {KINDS[kind]}\n{'batch':>8} {'micro':>6} {'replicas':>8} {'ms an image':>12} {'ratio':>6}")
        for row in rows:
            low, high = row["ratio_quartiles"]
            print(
                f"{row['batch']:8} {row['micro_batch_size'] or 'all':>6} {row['replicas']:8} "
                f"{row['milliseconds_an_image']:12.3f} {row['ratio']:6.3f} ({low:.3f} to {high:.3f})",
                flush=True,
            )
        harness.write_report(FLAGS.json, report)
    if FLAGS.plot:
        plot(report, FLAGS.plot)


if __name__ == "__main__":
    flags.DEFINE_list("parts", list(PARTS), "What to vary.")
    flags.DEFINE_list("kinds", list(KINDS), "Which steps.")
    flags.DEFINE_integer("rounds", 5, "How often each step is timed; 0 to draw what the JSON holds.")
    flags.DEFINE_string("json", None, "File to keep the numbers in; other parts' and kinds' stay.")
    flags.DEFINE_string("plot", None, "Where to draw the numbers.")
    app.run(main)
