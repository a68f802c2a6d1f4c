"""What exact per-example gradient norms cost: a training step with them over the same step without.

    python -m benchmarks.norms                                  # every case: about half an hour on two cores
    python -m benchmarks.norms --cases=resnet20 --parts=time --pairs=31
    python -m benchmarks.norms --json=benchmarks/norms.json     # what is not run now, the file keeps

Time: each case runs in a process of its own, in which both steps take turns; reported is the median of the ratios of
neighbours, with their quartiles. Memory: each step alone in a fresh process, the peak of its resident memory after
eight steps, three processes of each kind in turns. The plain step is forward, backward and Keras's SGD with momentum;
the other does the same and returns `s_k` of every trainable tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its input and how many examples are measured (None: all)."""

    model: str
    pixels: int
    batch: int
    norm_examples: int | None = None


CASES = {
    "resnet50": Case("resnet50", 224, 16),
    "resnet20": Case("resnet20", 32, 256),
    "mobilenetv2": Case("mobilenetv2", 96, 64),
    "densenet121": Case("densenet121", 96, 32),
    "resnet20_sampled": Case("resnet20", 32, 1024, norm_examples=128),
}
CLASSES = 100
PARTS = ("time", "memory")
# TensorFlow's allocator takes memory in regions of doubling size and comes to use the last one's pages sooner or later:
# after three steps plain DenseNet121 is at 2.0 or at 2.2 GB, as it happens.
MEMORY_STEPS = 8
MEMORY_RUNS = 3


def build_model(case: Case) -> Any:
    """The case's model with fixed weights, giving logits."""
    import keras

    from tf_largebatch import models

    keras.utils.set_random_seed(0)
    if case.model == "resnet20":
        return models.build("resnet20", (case.pixels, case.pixels, 3), CLASSES)
    factory = {"resnet50": "ResNet50", "mobilenetv2": "MobileNetV2", "densenet121": "DenseNet121"}[case.model]
    return getattr(keras.applications, factory)(
        weights=None, input_shape=(case.pixels, case.pixels, 3), classes=CLASSES, classifier_activation=None
    )


def build_step(case: Case, measured: bool) -> Callable[[Any, Any], Any]:
    """A compiled training step of its own model and optimizer."""
    import keras
    import tensorflow as tf

    from tf_largebatch.norms import KERAS, measure

    model = build_model(case)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(autograph=False)
    def step(x: Any, y: Any) -> Any:
        variables = model.trainable_variables
        if measured:
            _, found = measure(
                model,
                lambda: model(x, training=True),
                lambda logits: loss(y, logits),
                variables,
                case.batch,
                KERAS,
                case.norm_examples,
            )
            gradients, result = found.gradients, tf.stack(found.norm_sums())
        else:
            with tf.GradientTape() as tape:
                result = loss(y, model(x, training=True))
            gradients = tape.gradient(result, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return result

    return step


def inputs(case: Case) -> tuple[Any, Any]:
    """Random images and labels."""
    import tensorflow as tf

    tf.random.set_seed(0)
    x = tf.random.normal([case.batch, case.pixels, case.pixels, 3])
    return x, tf.random.uniform([case.batch], 0, CLASSES, tf.int32)


def time_case(case: Case, pairs: int) -> dict[str, Any]:
    """Times both steps in turns in this process."""
    import numpy as np

    x, y = inputs(case)
    plain, measured = build_step(case, False), build_step(case, True)

    def seconds(step: Callable[[Any, Any], Any]) -> float:
        start = time.perf_counter()
        np.asarray(step(x, y))
        return time.perf_counter() - start

    seconds(plain), seconds(measured)  # tracing
    times = [(seconds(plain), seconds(measured)) for _ in range(pairs)]
    return {
        "plain_seconds": statistics.median(p for p, _ in times),
        "measured_seconds": statistics.median(m for _, m in times),
        **_median_and_quartiles("ratio", [m / p for p, m in times]),
        "pairs": pairs,
    }


def peak_memory(case: Case, measured: bool) -> int:
    """Peak resident bytes of this process, which runs one kind of step only."""
    x, y = inputs(case)
    step = build_step(case, measured)
    for _ in range(MEMORY_STEPS):
        step(x, y)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare_memory(name: str) -> dict[str, Any]:
    """Runs both kinds of step in turns, each in processes of its own."""
    peaks = [[_in_a_process_of_its_own(name, kind) for kind in ("plain", "measured")] for _ in range(MEMORY_RUNS)]
    plain, measured = zip(*peaks, strict=True)
    return {
        **_median_and_quartiles("memory_ratio", [m / p for p, m in peaks]),
        **_median_and_quartiles("plain_peak_bytes", plain),
        **_median_and_quartiles("measured_peak_bytes", measured),
        "memory_runs": MEMORY_RUNS,
    }


def _median_and_quartiles(name: str, values: Sequence[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {name: middle, f"{name}_quartiles": [low, high]}


def _in_a_process_of_its_own(name: str, task: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.norms", f"--cases={name}", f"--task={task}", f"--pairs={FLAGS.pairs}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def versions_and_machine() -> dict[str, Any]:
    """What a measurement depends on besides the code."""
    import keras
    import tensorflow as tf

    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "cpu": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
    }


def read_report(path: str | None) -> dict[str, Any]:
    """What a file holds from the same versions and machine; else an empty report."""
    report: dict[str, Any] = {"environment": versions_and_machine(), "cases": {}}
    if path and os.path.exists(path):
        with open(path) as file:
            found = json.load(file)
        if found["environment"] == report["environment"]:
            return found
    return report


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""

    def spread(entry: dict[str, Any], name: str) -> str:
        if name not in entry:
            return "not run"
        low, high = entry[f"{name}_quartiles"]
        return f"{entry[name]:.2f} ({low:.2f} to {high:.2f})"

    lines = [
        "| case | batch | measured | plain step, s | time, ratio | memory, ratio | plain, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in report["cases"].items():
        cells = (
            f"{name}, {entry['pixels']} px",
            entry["batch"],
            entry["norm_examples"] or "all",
            f"{entry.get('plain_seconds', math.nan):.2f}",
            spread(entry, "ratio"),
            spread(entry, "memory_ratio"),
            f"{entry.get('plain_peak_bytes', math.nan) / 1e9:.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Runs the cases, writes JSON and prints a table."""
    del argv
    if FLAGS.task:
        case = CASES[FLAGS.cases[0]]
        result = time_case(case, FLAGS.pairs) if FLAGS.task == "time" else peak_memory(case, FLAGS.task == "measured")
        print(json.dumps(result))
        return
    found = {}
    for name in FLAGS.cases or CASES:
        found[name] = dataclasses.asdict(CASES[name])
        if "time" in FLAGS.parts:
            found[name].update(_in_a_process_of_its_own(name, "time"))
        if "memory" in FLAGS.parts:
            found[name].update(compare_memory(name))
        report = read_report(FLAGS.json)
        cases = {**report["cases"], **{name: {**report["cases"].get(name, {}), **new} for name, new in found.items()}}
        report["cases"] = {name: cases[name] for name in CASES if name in cases}
        if FLAGS.json:
            with open(FLAGS.json, "w") as file:
                json.dump(report, file, indent=1)
                file.write("\n")
    print(table(report))


if __name__ == "__main__":
    flags.DEFINE_list("cases", None, f"Of {', '.join(CASES)}; default: all.")
    flags.DEFINE_list("parts", list(PARTS), f"Of {', '.join(PARTS)}.")
    flags.DEFINE_integer("pairs", 15, "How often each step is timed.")
    flags.DEFINE_string("json", None, "Where to write the report.")
    flags.DEFINE_enum("task", None, ["time", "plain", "measured"], "Used by the program itself.")
    app.run(main)
