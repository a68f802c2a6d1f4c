"""What exact per-example gradient norms cost: a training step with them over the same step without.

    python -m benchmarks.norms                                  # every case: about half an hour on two cores
    python -m benchmarks.norms --cases=resnet20 --pairs=31
    python -m benchmarks.norms --json=benchmarks/norms.json

Time: each case runs in a process of its own, in which both steps take turns; reported is the median of the ratios of
neighbours, with their quartiles. Memory: each step alone in a fresh process, the peak of its resident memory. The
plain step is forward, backward and Keras's SGD with momentum; the other does the same and returns `s_k` of every
trainable tensor.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
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


def build_model(case: Case) -> Any:
    """The case's model with fixed weights, giving logits."""
    import keras

    from tf_largebatch import zoo

    keras.utils.set_random_seed(0)
    if case.model == "resnet20":
        return zoo.build("resnet20", (case.pixels, case.pixels, 3), CLASSES)
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
    times = np.array([(seconds(plain), seconds(measured)) for _ in range(pairs)])
    ratios = times[:, 1] / times[:, 0]
    return {
        "plain_seconds": float(np.median(times[:, 0])),
        "measured_seconds": float(np.median(times[:, 1])),
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
        "pairs": pairs,
    }


def peak_memory(case: Case, measured: bool) -> dict[str, int]:
    """Peak resident bytes of this process after three steps, and before the model was built."""
    x, y = inputs(case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = build_step(case, measured)
    for _ in range(3):
        step(x, y)
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "before": before}


def _in_a_process_of_its_own(name: str, task: str, pairs: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.norms", f"--cases={name}", f"--task={task}", f"--pairs={pairs}"]
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


def main(argv: list[str]) -> None:
    """Runs the cases, prints a table and writes JSON."""
    del argv
    names = FLAGS.cases or list(CASES)
    if FLAGS.task:
        case = CASES[names[0]]
        result = time_case(case, FLAGS.pairs) if FLAGS.task == "time" else peak_memory(case, FLAGS.task == "measured")
        print(json.dumps(result))
        return
    report: dict[str, Any] = {"environment": versions_and_machine(), "cases": {}}
    print(f"{'case':18} {'batch':>5} {'measured':>8}  {'plain s':>8} {'ratio':>6} {'quartiles':>13} {'memory':>7}")
    for name in names:
        case = CASES[name]
        timing = _in_a_process_of_its_own(name, "time", FLAGS.pairs)
        memory = [_in_a_process_of_its_own(name, task, 1) for task in ("plain", "measured")]
        ratio = memory[1]["peak"] / memory[0]["peak"]
        report["cases"][name] = {
            **dataclasses.asdict(case),
            **timing,
            "memory_ratio": ratio,
            "plain_peak_bytes": memory[0]["peak"],
            "measured_peak_bytes": memory[1]["peak"],
        }
        low, high = timing["ratio_quartiles"]
        print(
            f"{name:18} {case.batch:5} {case.norm_examples or 'all':>8}  {timing['plain_seconds']:8.3f} "
            f"{timing['ratio']:6.3f} {low:6.3f}-{high:.3f} {ratio:7.3f}",
            flush=True,
        )
        if FLAGS.json:
            with open(FLAGS.json, "w") as file:
                json.dump(report, file, indent=1)


if __name__ == "__main__":
    flags.DEFINE_list("cases", None, f"Of {', '.join(CASES)}; default: all.")
    flags.DEFINE_integer("pairs", 15, "How often each step is timed.")
    flags.DEFINE_string("json", None, "Where to write the report.")
    flags.DEFINE_enum("task", None, ["time", "plain", "measured"], "Used by the program itself.")
    app.run(main)
