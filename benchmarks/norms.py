"""What exact per-example gradient norms cost: a training step with them over the same step without.

    python -m benchmarks.norms                                  # every network and layer: about an hour on two cores
    python -m benchmarks.norms --networks=resnet20 --parts=time --pairs=31
    python -m benchmarks.norms --layers=all --parts=time        # the layers only
    python -m benchmarks.norms --layers=Conv3D --layers='Dense, positions'
    python -m benchmarks.norms --json=benchmarks/reports/norms.json    # the file keeps what is not run now

Networks: forward, backward and Keras's SGD with momentum; the other step does the same and returns `s_k` of every
trainable tensor. Layers, one row a kind: forward and backward of the layer alone, down to its input's gradient.

Time: each row runs in a process of its own, in which both steps take turns; reported is the median of the ratios of
neighbours, with their quartiles. Memory: each step alone in a fresh process, several processes of each kind in turns;
reported is the peak of the resident memory after eight steps, for layers less what the process held before the first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable
from typing import Any

from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import harness
from benchmarks.layer_cases import LayerCase, layer_cases

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its input and how many examples are measured (None: all)."""

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
# Row of the table, and the ratio of times to reach; the one of memory is 1.10 for all.
TITLES = {
    "resnet50": ("ResNet-50", "1.03"),
    "resnet20": ("ResNet-20", "1.30"),
    "mobilenetv2": ("MobileNetV2", "1.25"),
    "densenet121": ("DenseNet121", "1.15"),
    "resnet20_sampled": ("ResNet-20", "1.03"),
}
CLASSES = 100
PARTS = ("time", "memory")
# TensorFlow's allocator takes memory in regions of doubling size and comes to use the last one's pages sooner or later:
# after three steps plain DenseNet121 is at 2.0 or at 2.2 GB, as it happens.
MEMORY_STEPS = 8
MEMORY_RUNS = 3


def build_model(case: Case) -> Any:
    """The network with fixed weights, giving logits."""
    import keras

    from tf_largebatch import models

    keras.utils.set_random_seed(0)
    if case.model == "resnet20":
        return models.build("resnet20", (case.pixels, case.pixels, 3), CLASSES)
    factory = {"resnet50": "ResNet50", "mobilenetv2": "MobileNetV2", "densenet121": "DenseNet121"}[case.model]
    return getattr(keras.applications, factory)(
        weights=None, input_shape=(case.pixels, case.pixels, 3), classes=CLASSES, classifier_activation=None
    )


def build_network_step(case: Case, measured: bool) -> Callable[[], Any]:
    """A compiled training step of its own model and optimizer, on random images and labels."""
    import keras
    import tensorflow as tf

    model = build_model(case)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(autograph=False)
    def step(x: Any, y: Any) -> Any:
        gradients, result = _differentiate(
            model, lambda: model(x, training=True), lambda logits: loss(y, logits), case.batch, measured, case
        )
        optimizer.apply(gradients, model.trainable_variables)
        return result

    tf.random.set_seed(0)
    x = tf.random.normal([case.batch, case.pixels, case.pixels, 3])
    y = tf.random.uniform([case.batch], 0, CLASSES, tf.int32)
    return lambda: step(x, y)


def build_layer_step(case: LayerCase, measured: bool) -> Callable[[], Any]:
    """A compiled forward and backward pass of its own layer on random inputs; the loss is the outputs' mean square."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    integers = case.vocabulary is not None
    inputs = keras.Input(case.shape, dtype="int32" if integers else "float32")
    model = keras.Model(inputs, case.make()(inputs if integers else _offset_class()()(inputs)))

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        def loss(y: Any) -> Any:
            return tf.reduce_mean(tf.square(y))

        return _differentiate(model, lambda: model(x, training=True), loss, case.batch, measured, None)

    tf.random.set_seed(0)
    shape = [case.batch, *case.shape]
    x = tf.random.uniform(shape, 0, case.vocabulary, tf.int32) if integers else tf.random.normal(shape)
    return lambda: step(x)


def _offset_class() -> Any:
    """A layer that adds one trainable number, so that the layer behind it has to give its input's gradient."""
    import keras

    from tf_largebatch import norms

    class Offset(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.offset = self.add_weight(shape=(), initializer="zeros")

        def call(self, x: Any) -> Any:
            return x + self.offset

    @norms.register(Offset)
    def offset(layer: Any, recorder: Any, x: Any) -> Any:
        return x + keras.ops.reshape(recorder.per_example(layer.offset), (-1, *(1,) * (len(x.shape) - 1)))

    return Offset


def _differentiate(
    model: Any, forward: Callable[[], Any], loss: Callable[[Any], Any], batch: int, measured: bool, case: Case | None
) -> tuple[Any, Any]:
    """Gradients of the trainable variables, and the loss or, measured, `s_k` of all of them."""
    import tensorflow as tf

    from tf_largebatch.norms import KERAS, measure

    variables = model.trainable_variables
    if measured:
        _, found = measure(model, forward, loss, variables, batch, KERAS, case and case.norm_examples)
        return found.gradients, tf.stack(found.gradient_norms().unpack())
    with tf.GradientTape() as tape:
        result = loss(forward())
    return tape.gradient(result, [v.value for v in variables]), result


def build_step(name: str, measured: bool) -> Callable[[], Any]:
    """The step of a network or layer."""
    if name in CASES:
        return build_network_step(CASES[name], measured)
    return build_layer_step(layer_cases()[name], measured)


def time_steps(name: str, pairs: int) -> dict[str, Any]:
    """Times both steps in turns in this process."""
    steps = {"plain": build_step(name, False), "measured": build_step(name, True)}
    times = harness.interleaved(steps, pairs, warm_up=1 if name in CASES else 3)
    return {
        "plain_seconds": statistics.median(times["plain"]),
        "measured_seconds": statistics.median(times["measured"]),
        **harness.median_and_quartiles("ratio", harness.ratios(times["measured"], times["plain"])),
        "pairs": pairs,
    }


def peak_memory(name: str, measured: bool) -> int:
    """Peak resident bytes of this process, which runs one kind of step only; for layers what the steps added."""
    step = build_step(name, measured)
    before = 0 if name in CASES else harness.resident_bytes()
    for _ in range(MEMORY_STEPS):
        step()
    return harness.peak_bytes() - before


def compare_memory(name: str, runs: int) -> dict[str, Any]:
    """Runs both kinds of step in turns, each in processes of its own."""
    peaks = [[_in_a_process_of_its_own(name, kind) for kind in ("plain", "measured")] for _ in range(runs)]
    plain, measured = zip(*peaks, strict=True)
    return {
        **harness.median_and_quartiles("memory_ratio", [m / p for p, m in peaks]),
        **harness.median_and_quartiles("plain_peak_bytes", plain),
        **harness.median_and_quartiles("measured_peak_bytes", measured),
        "memory_runs": runs,
    }


def _in_a_process_of_its_own(name: str, task: str) -> Any:
    arguments = f"--name={name}", f"--task={task}", f"--pairs={FLAGS.pairs}"
    return harness.in_a_process_of_its_own("benchmarks.norms", *arguments)[-1]


def read_report(path: str | None) -> dict[str, Any]:
    """What a file holds from the same versions and machine; else an empty report."""
    report: dict[str, Any] = {"environment": harness.versions_and_machine(), "cases": {}}
    found = harness.read_report(path)
    return found if found.get("environment") == report["environment"] else report


def _spread(entry: dict[str, Any], name: str) -> str:
    if name not in entry:
        return "not run"
    low, high = entry[f"{name}_quartiles"]
    return f"{entry[name]:.2f} ({low:.2f} to {high:.2f})"


def network_table(report: dict[str, Any]) -> str:
    """The networks in Markdown."""
    lines = [
        "| case | batch | measured | plain step, s | time, ratio (quartiles) | to reach | "
        "memory, ratio, to reach 1.10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in report["cases"].items():
        title, to_reach = TITLES[name]
        cells = (
            f"{title}, {entry['pixels']} px",
            entry["batch"],
            entry["norm_examples"] or "all",
            f"{entry.get('plain_seconds', math.nan):.2f}",
            _spread(entry, "ratio"),
            to_reach,
            _spread(entry, "memory_ratio"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def layer_table(report: dict[str, Any]) -> str:
    """The layers in Markdown."""
    lines = [
        "| layer | batch | input | plain step, ms | time, ratio (quartiles) | memory, ratio | plain, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    if not report.get("layers"):
        return "Not run yet."
    for name, entry in report["layers"].items():
        cells = (
            name,
            entry["batch"],
            entry["input"],
            f"{1e3 * entry.get('plain_seconds', math.nan):.1f}",
            _spread(entry, "ratio"),
            _spread(entry, "memory_ratio"),
            f"{entry['plain_peak_bytes'] / 1e6:.0f}" if "plain_peak_bytes" in entry else "not run",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _selected() -> dict[str, dict[str, Any]]:
    """What to run, networks first: how each row of the report starts."""
    chosen = FLAGS.networks or FLAGS.layers
    networks = CASES if not chosen or FLAGS.networks == ["all"] else FLAGS.networks or []
    cases = layer_cases()
    layers = cases if not chosen or FLAGS.layers == ["all"] else FLAGS.layers or []
    unknown = [name for name in (*networks, *layers) if name not in CASES and name not in cases]
    if unknown:
        raise app.UsageError(f"networks and layers must be known; received {unknown}: choose from {[*CASES, *cases]}.")
    rows: dict[str, dict[str, Any]] = {name: dataclasses.asdict(CASES[name]) for name in networks}
    for name in layers:
        rows[name] = {"batch": cases[name].batch, "input": " x ".join(map(str, cases[name].shape))}
    return rows


def main(argv: list[str]) -> None:
    """Runs the chosen rows, writes JSON and prints tables."""
    del argv
    if FLAGS.task:
        time_it = FLAGS.task == "time"
        found = time_steps(FLAGS.name, FLAGS.pairs) if time_it else peak_memory(FLAGS.name, FLAGS.task == "measured")
        print(json.dumps(found))
        return
    rows, report = _selected(), read_report(FLAGS.json)
    report.setdefault("layers", {})
    for name, row in rows.items():
        if "time" in FLAGS.parts:
            row.update(_in_a_process_of_its_own(name, "time"))
        if "memory" in FLAGS.parts:
            row.update(compare_memory(name, MEMORY_RUNS))
        print(f"{name}: time {_spread(row, 'ratio')}, memory {_spread(row, 'memory_ratio')}", flush=True)
        kind, order = ("cases", CASES) if name in CASES else ("layers", layer_cases())
        entries = {**report[kind], name: {**report[kind].get(name, {}), **row}}
        report[kind] = {known: entries[known] for known in order if known in entries}
        harness.write_report(FLAGS.json, report)
    print(f"\n{network_table(report)}\n\n{layer_table(report)}")


if __name__ == "__main__":
    flags.DEFINE_list("networks", None, f"Of {', '.join(CASES)}, or all; default: all, unless --layers is given.")
    # Names of layers have commas.
    flags.DEFINE_multi_string("layers", None, "A row of benchmarks/layer_cases.py, may be repeated, or all.")
    flags.DEFINE_list("parts", list(PARTS), f"Of {', '.join(PARTS)}.")
    flags.DEFINE_integer("pairs", 15, "How often each step is timed.")
    flags.DEFINE_string("json", None, "Where to write the report, after every row.")
    flags.DEFINE_string("name", None, "Used by the program itself.")
    flags.DEFINE_enum("task", None, ["time", "plain", "measured"], "Used by the program itself.")
    app.run(main)
