"""One update on 98,304 CIFAR-10 images, exact norms and adversarial images, and the same update laid out otherwise.

    python -m benchmarks.huge_batch --batch=2048 --parts=one_device,two_replicas          # a minute, to try it
    python -m benchmarks.huge_batch --json=benchmarks/reports/huge_batch.json       # an hour or two on two cores

One call of `fit` with one batch: ConAdv makes an adversarial image of every image, CLARS measures the norm of every
clean and adversarial image's gradient, and the weights move once. The batch is split into micro-batches. Each part runs
in a process of its own, and once done is kept in the JSON and in --directory, so that an interrupted report goes on.

    one_device         ResNet-20, micro-batches of 256
    two_replicas       the same groups of 256 images, half of them on each of two logical devices of the CPU
    group_norm_256     ResNet-20 with group norm in place of batch norm, micro-batches of 256
    group_norm_384     the same in micro-batches of 384
    no_radius_256      as group_norm_256, adversarial images equal to the clean ones
    no_radius_384      as group_norm_384, adversarial images equal to the clean ones

Batch norm takes its statistics from a micro-batch, so that only layouts with the same groups of images can agree: the
first two. Without batch norm the size of the micro-batches must not matter: the others. So that the attack draws the
same in every layout, it draws nothing: one untargeted step from the clean image. It goes by the sign of each pixel's
gradient, which rounding turns where the gradient is next to nothing, and the adversarial image with
it. With radius 0 it does not.

The 50,000 training images are augmented by crop and flip; from the second pass over them on they are repeats.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import harness

FLAGS = flags.FLAGS

# Norm layer, images of a micro-batch, replicas, the attack's radius in units of 1/255.
PARTS = {
    "one_device": ("batch", 256, 1, 4.0),
    "two_replicas": ("batch", 256, 2, 4.0),
    "group_norm_256": ("group", 256, 1, 4.0),
    "group_norm_384": ("group", 384, 1, 4.0),
    "no_radius_256": ("group", 256, 1, 0.0),
    "no_radius_384": ("group", 384, 1, 0.0),
}
COMPARISONS = [
    ("one_device", "two_replicas"),
    ("group_norm_256", "group_norm_384"),
    ("no_radius_256", "no_radius_384"),
]
LOADED_AT_ONCE = 512


def build_network(norm: str) -> Any:
    """ResNet-20 with fixed weights, with batch norm or with group norm in its place."""
    import keras

    from tf_largebatch import models

    keras.utils.set_random_seed(0)
    network = models.build("resnet20", (32, 32, 3), 10)
    if norm == "batch":
        return network

    def other(layer: Any) -> Any:
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.GroupNormalization(8, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    keras.utils.set_random_seed(0)
    # Batch norm is called with a mask, which group norm does not know.
    return keras.models.clone_model(network, clone_function=other, call_function=lambda layer, x, **_: layer(x))


def load_batch(dataset: Any, size: int) -> tuple[Any, Any]:
    """Augmented training images, standardized, and their labels."""
    import numpy as np

    images = np.empty((size, 32, 32, 3), "float32")
    labels = np.empty((size,), "int32")
    passes = -(-size // (dataset.steps_per_epoch(LOADED_AT_ONCE) * LOADED_AT_ONCE))
    start = 0
    for x, y in dataset.train(LOADED_AT_ONCE, epochs=passes).take(-(-size // LOADED_AT_ONCE)):
        stop = min(size, start + LOADED_AT_ONCE)
        images[start:stop], labels[start:stop] = x[: stop - start], y[: stop - start]
        start = stop
    return images, labels


def run_part(name: str, size: int, directory: pathlib.Path) -> dict[str, Any]:
    """Makes the update, keeps it in `directory`, and says what it took."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_largebatch as lb
    from tf_largebatch import data
    from tf_largebatch.distribute import strategies

    norm, micro_batch_size, replicas, epsilon = PARTS[name]
    strategy = strategies.build("mirrored", replicas) if replicas > 1 else strategies.build("one_device")
    strategies.check_batch(size, replicas, micro_batch_size)
    dataset = data.load("cifar10", augment="crop_flip")
    images, labels = load_batch(dataset, size)
    with strategy.scope():
        model = lb.ConAdvModel(
            build_network(norm),
            epsilon=epsilon,
            targeted=False,
            random_start=0.0,
            value_range=dataset.value_range(),
            micro_batch_size=micro_batch_size,
        )
        optimizer = lb.CLARS(1.0, weight_decay_rate=2e-4, gradient_norms="per_example")
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    before = [v.numpy() for v in model.trainable_variables]
    batch = tf.data.Dataset.from_tensors((images, labels))
    image_bytes = images.nbytes
    del images, labels
    before_bytes = harness.resident_bytes()
    start, processor_start = time.perf_counter(), time.process_time()
    logs = model.fit(batch, steps_per_epoch=1, shuffle=False, verbose=0).history
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    assert int(optimizer.iterations.numpy()) == 1
    update = {v.path: v.numpy() - old for v, old in zip(model.trainable_variables, before, strict=True)}
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / f"{name}-{size}.npz", **update)
    (directory / f"{name}-{size}-norms.json").write_text(json.dumps(optimizer.gradient_norms()))
    return {
        "part": name,
        "batch": size,
        "norm": norm,
        "micro_batch_size": micro_batch_size,
        "replicas": replicas,
        "epsilon": epsilon,
        "minutes": seconds / 60,
        "processor_minutes": processor_seconds / 60,
        "image_bytes": image_bytes,
        "before_bytes": before_bytes,
        "peak_bytes": harness.peak_bytes(),
        "clean_loss": logs["clean_loss"][0],
        "adversarial_loss": logs["adversarial_loss"][0],
    }


def compare(directory: pathlib.Path, one: str, other: str) -> dict[str, Any]:
    """Differences of two updates, ||a - b|| / ||a||: of all tensors together, of the worst one; and of the norms."""
    import numpy as np

    with np.load(directory / f"{one}.npz") as a, np.load(directory / f"{other}.npz") as b:
        squares = {path: [np.sum(np.square(v, dtype="float64")) for v in (a[path] - b[path], a[path])] for path in a}
    differences = {path: float(np.sqrt(difference / size)) for path, (difference, size) in squares.items()}
    worst = max(differences, key=differences.__getitem__)
    norms = [json.loads((directory / f"{name}-norms.json").read_text()) for name in (one, other)]
    return {
        "whole_update": float(np.sqrt(np.divide(*np.sum(list(squares.values()), axis=0)))),
        "worst_tensor": differences[worst],
        "which": worst,
        "worst_norm": max(abs(norms[1][path] - value) / value for path, value in norms[0].items()),
    }


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def main(argv: list[str]) -> None:
    """Runs the parts that are not done yet, compares them, prints and writes JSON."""
    del argv
    directory = pathlib.Path(FLAGS.directory)
    if FLAGS.task:
        print(json.dumps(run_part(FLAGS.task, FLAGS.batch, directory)))
        return
    path = pathlib.Path(FLAGS.json) if FLAGS.json else directory / "report.json"
    report = {"parts": [], "comparisons": [], **harness.read_report(path)}
    report["environment"] = harness.versions_and_machine()
    for name in FLAGS.parts:
        kept = directory / f"{name}-{FLAGS.batch}.npz"
        if kept.exists() and any((row["part"], row["batch"]) == (name, FLAGS.batch) for row in report["parts"]):
            continue
        arguments = [f"--task={name}", f"--batch={FLAGS.batch}", f"--directory={directory}"]
        row = harness.in_a_process_of_its_own("benchmarks.huge_batch", *arguments)[-1]
        report["parts"] = [r for r in report["parts"] if (r["part"], r["batch"]) != (name, FLAGS.batch)] + [row]
        harness.write_report(path, report)
        more = row["peak_bytes"] - row["before_bytes"]
        print(
            f"{name:15} {row['batch']:6} images ({_gib(row['image_bytes'])}): {row['minutes']:.1f} min, of processors "
            f"{row['processor_minutes']:.1f}; peak {_gib(row['peak_bytes'])}, {_gib(more)} more than before it",
            flush=True,
        )
    for pair in COMPARISONS:
        kept = [f"{name}-{FLAGS.batch}" for name in pair]
        if not all((directory / f"{name}.npz").exists() for name in kept):
            continue
        row = {"parts": " and ".join(pair), "batch": FLAGS.batch, **compare(directory, *kept)}
        others = [r for r in report["comparisons"] if (r["parts"], r["batch"]) != (row["parts"], FLAGS.batch)]
        report["comparisons"] = [*others, row]
        harness.write_report(path, report)
        print(
            f"{row['parts']}: the updates differ by {row['whole_update']:.1e}, "
            f"that of {row['which']} by {row['worst_tensor']:.1e}, "
            f"the norms by {row['worst_norm']:.1e} at most"
        )


if __name__ == "__main__":
    flags.DEFINE_list("parts", list(PARTS), "Which layouts.")
    flags.DEFINE_integer("batch", 98304, "Images of the update.")
    flags.DEFINE_string("json", None, "File to keep the numbers in; default: report.json in --directory.")
    flags.DEFINE_string("directory", "build/huge_batch", "Where the updates are kept.")
    flags.DEFINE_string("task", None, "Used by the program itself.")
    app.run(main)
