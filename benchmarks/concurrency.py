"""What the attack of ConAdv costs: steps with it, concurrent and sequential, over the training pass alone.

    python -m benchmarks.concurrency                                  # about three minutes on two cores
    python -m benchmarks.concurrency --images=32 --rounds=31
    python -m benchmarks.concurrency --json=benchmarks/reports/concurrency.json

ResNet-20, 32 px, SGD with momentum. Four programs take turns in one process, each on the same images:

    plain         the training pass on clean images and given adversarial images: two streams, no attack
    concurrent    the same, and the attack on another batch, which nothing in it waits for (staleness=1)
    staleness=0   the attack on the same batch: the adversarial stream waits for it, the clean one does not
    sequential    the attack first, and everything waits for it, as in the authors' program

The same four with "joined" streams, one pass over clean and adversarial images side by side, split at each batch norm
alone. And how many cores each program keeps busy: CPU time over wall time, median.

Time: the ratio to the plain program of the same turn, median and quartiles. `spare` has one thread for each operation
and two operations at once; `saturated` two threads for each operation. Memory: the peak of a process that takes two
plain steps of 256 images, with the streams in turn as in the package, at once, or joined.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import harness

FLAGS = flags.FLAGS
THREADS = {"spare": (1, 2), "saturated": (2, 2)}
PROGRAMS = ("plain", "concurrent", "staleness=0", "sequential")
FORMS = ("in turn", "joined", "at once")
CLASSES = 10
MEMORY_IMAGES = 256


def build_model(form: str) -> Any:
    """ConAdvModel around ResNet-20 with fixed weights, its streams in one of the `FORMS`."""
    import keras
    import tensorflow as tf

    import tf_largebatch as lb
    from tf_largebatch import models
    from tf_largebatch.norms.intercept import intercept
    from tf_largebatch.training.step import Pass

    class Joined(lb.ConAdvModel):
        """One pass over the images of both streams."""

        def _update(self, streams: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
            x, adversarial = streams[0].inputs, streams[1].inputs
            half = tf.shape(x)[0]

            def split(main: Any, auxiliary: Any) -> Callable[..., Any]:
                call = type(main).call.__get__(main)

                def both(inputs: Any, training: Any = None, mask: Any = None) -> Any:
                    parts = call(inputs[:half], training=training), auxiliary.call(inputs[half:], training=training)
                    return tf.concat(parts, axis=0)

                return both

            with tf.GradientTape() as tape:
                with contextlib.ExitStack() as stack:
                    for main, auxiliary in streams[1].replacements.items():
                        stack.enter_context(intercept(main, split(main, auxiliary)))
                    scores = self(tf.concat([x, adversarial], axis=0), training=True)
                loss = self.compute_loss(y=y, y_pred=scores[:half]) + self.compute_loss(y=y, y_pred=scores[half:])
            variables = self.trainable_variables
            gradients = tape.gradient(loss, [v.value for v in variables])
            self._apply(Pass(tf.reshape(loss, [1]), variables, gradients, None))
            return self.compute_metrics(x, y, scores[:half])

    keras.utils.set_random_seed(0)
    net = models.build("resnet20", (32, 32, 3), CLASSES)
    model = (Joined if form == "joined" else lb.ConAdvModel)(net, staleness=1, value_range=(0.0, 1.0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), loss)
    return model


def build_programs(form: str) -> dict[str, Callable[[Any], Any]]:
    """The four programs of one form, by `PROGRAMS`; they share a model."""
    import tensorflow as tf

    model = build_model(form)
    model.get_ready(inputs(2))
    signature = [(tf.TensorSpec([None, 32, 32, 3]), tf.TensorSpec([None], tf.int32))]

    def compiled(step: Callable[[Any], Any]) -> Any:
        return tf.function(step, input_signature=signature, autograph=False)

    def concurrent(batch: Any) -> Any:
        coming = model.attack_next(batch)
        return model.train_on_pair(batch, batch[0]), coming

    def attacked(batch: Any) -> Any:
        return model._attacked(batch, model.stale.step, lag=0)  # with the present weights

    def sequential(batch: Any) -> Any:
        adversarial = attacked(batch)
        with tf.control_dependencies([adversarial]):
            batch = tf.nest.map_structure(tf.identity, batch)
        return model.train_on_pair(batch, adversarial)

    return {
        "plain": compiled(lambda batch: model.train_on_pair(batch, batch[0])),
        "concurrent": compiled(concurrent),
        "staleness=0": compiled(lambda batch: model.train_on_pair(batch, attacked(batch))),
        "sequential": compiled(sequential),
    }


def inputs(images: int) -> tuple[Any, Any]:
    """Random images in [0, 1] and labels."""
    import tensorflow as tf

    tf.random.set_seed(0)
    return tf.random.uniform([images, 32, 32, 3]), tf.random.uniform([images], 0, CLASSES, tf.int32)


def time_programs(sizes: list[int], rounds: int, wait: bool) -> Iterator[dict[str, Any]]:
    """Times all programs in turns in this process; yields a record for each size and program."""
    import numpy as np
    import tensorflow as tf

    forms = FORMS[:2]
    programs = {(form, name): f for form in forms for name, f in build_programs(form).items()}

    def seconds(program: Callable[[Any], Any], batch: Any) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for result in tf.nest.flatten(program(batch)):
            np.asarray(result)
        return time.perf_counter() - wall, time.process_time() - cpu

    for size in {min(sizes), max(sizes)}:
        for program in programs.values():
            seconds(program, inputs(size))
    if wait:
        print("traced; press Enter", file=sys.stderr, flush=True)
        sys.stdin.readline()
    for size in sizes:
        batch = inputs(size)
        # Small steps are short: as many of them as make up the time of one of 32 images, at most 5 times the rounds.
        turns = rounds * max(1, min(5, 32 // size))
        times = [{key: seconds(program, batch) for key, program in programs.items()} for _ in range(turns)]
        for (form, name), _ in programs.items():
            wall = np.array([turn[form, name][0] for turn in times])
            cpu = np.array([turn[form, name][1] for turn in times])
            ratios = wall / np.array([turn[form, "plain"][0] for turn in times])
            yield {
                "images": size,
                "form": form,
                "program": name,
                "seconds": float(np.median(wall)),
                **harness.median_and_quartiles("ratio", ratios.tolist()),
                "busy_cores": float(np.median(cpu / wall)),
                "turns": turns,
            }


def peak_memory(form: str) -> int:
    """Peak resident bytes of this process after two plain steps."""
    from tf_largebatch.training import step

    if form == "at once":
        step._after = lambda passes, inputs: inputs
    plain = build_programs(form)["plain"]
    for _ in range(2):
        plain(inputs(MEMORY_IMAGES))
    return harness.peak_bytes()


def summary(setting: str, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each batch size and form of the pass, from what `time_programs` measured for each program."""
    rows = {}
    for one in measured:
        row = rows.setdefault(
            (one["images"], one["form"]),
            {"threads": setting, "images": one["images"], "streams": one["form"], "turns": one["turns"]},
        )
        if one["program"] == "plain":
            row.update(plain_seconds=one["seconds"], plain_busy_cores=one["busy_cores"])
        elif one["program"] == "concurrent":
            row.update(
                concurrent=one["ratio"],
                concurrent_quartiles=one["ratio_quartiles"],
                concurrent_busy_cores=one["busy_cores"],
            )
        else:
            name = one["program"].replace("=", "_")
            row.update({name: one["ratio"], f"{name}_quartiles": one["ratio_quartiles"]})
    return list(rows.values())


def _print_times(rows: list[dict[str, Any]]) -> None:
    names = [name.replace("=", "_") for name in PROGRAMS[1:]]
    print(f"{'threads':9} {'images':>6} {'streams':8} {'plain ms':>8} {'busy':>5}" + "".join(f"{n:>22}" for n in names))
    for row in rows:
        ratios = ["{:.3f} ({:.3f}-{:.3f})".format(row[name], *row[f"{name}_quartiles"]) for name in names]
        start = f"{row['threads']:9} {row['images']:>6} {row['streams']:8} {1e3 * row['plain_seconds']:8.1f}"
        print(f"{start} {row['plain_busy_cores']:5.2f}" + "".join(f"{ratio:>22}" for ratio in ratios), flush=True)


def main(argv: list[str]) -> None:
    """Runs every setting, prints tables and writes JSON."""
    del argv
    import tensorflow as tf

    sizes = [int(size) for size in FLAGS.images]
    intra, inter = THREADS[FLAGS.threads[0]]
    if FLAGS.task:
        tf.config.threading.set_intra_op_parallelism_threads(intra)
        tf.config.threading.set_inter_op_parallelism_threads(inter)
        found = time_programs(sizes, FLAGS.rounds, FLAGS.wait) if FLAGS.task == "time" else [peak_memory(FLAGS.form)]
        for record in found:
            print(json.dumps(record), flush=True)
        return
    report: dict[str, Any] = {"environment": harness.versions_and_machine(), "ratios": [], "memory": {}}

    for setting in FLAGS.threads:
        arguments = [f"--images={','.join(FLAGS.images)}", f"--rounds={FLAGS.rounds}", f"--wait={FLAGS.wait}"]
        rows = summary(
            setting,
            harness.in_a_process_of_its_own(
                "benchmarks.concurrency", "--task=time", f"--threads={setting}", *arguments
            ),
        )
        report["ratios"].extend(rows)
        _print_times(rows)
        harness.write_report(FLAGS.json, report)
    print(f"\nPeak memory of plain steps of {MEMORY_IMAGES} images")
    for form in FORMS:
        (peak,) = harness.in_a_process_of_its_own("benchmarks.concurrency", "--task=memory", f"--form={form}")
        report["memory"][f"streams {form}"] = {"peak_bytes": peak}
        print(f"streams {form:8} {peak / 2**20:8.0f} MiB", flush=True)
        harness.write_report(FLAGS.json, report)


if __name__ == "__main__":
    flags.DEFINE_list("images", ["1", "8", "32", "128"], "Batch sizes.")
    flags.DEFINE_list("threads", list(THREADS), f"Of {', '.join(THREADS)}.")
    flags.DEFINE_integer("rounds", 15, "How often each program is timed, small batches up to five times as often.")
    flags.DEFINE_string("json", None, "Where to write the report.")
    flags.DEFINE_bool("wait", False, "Once a process has traced everything, wait for a line of the standard input.")
    flags.DEFINE_enum("task", None, ["time", "memory"], "Used by the program itself.")
    flags.DEFINE_enum("form", FORMS[0], FORMS, "Used by the program itself.")
    app.run(main)
