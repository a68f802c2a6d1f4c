"""Trains small networks on one and on eight virtual CPU devices, in one process; prints what differs, as JSON.

python tests/jax/several_devices_run.py FOLDER CASE...
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import sys
import tempfile
import time

import keras
import numpy as np
from keras import layers
from train_runs import arrays_of, command_line, linear_network, untimed_rows_of

import tf_largebatch as lb
from tf_largebatch import models
from tf_largebatch.callbacks import load_checkpoint
from tf_largebatch.callbacks.checkpoint import save_checkpoint

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6, 6, 3)).astype("float32"), RNG.integers(0, 4, 40)
DEVICES = keras.distribution.list_devices()
REFERENCES = {}


def distribution(kind):
    """DataParallel, or ModelParallel over batch x model devices with kernels split along their last axis."""
    if kind is None:
        return None
    if isinstance(kind, int):
        return keras.distribution.DataParallel(devices=DEVICES[:kind])
    mesh = keras.distribution.DeviceMesh(kind, ("batch", "model"), DEVICES[: kind[0] * kind[1]])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*conv.*kernel"] = (None, None, None, "model")
    layouts[".*conv.*bias"] = ("model",)
    layouts[".*norm.*(gamma|beta)"] = ("model",)
    layouts[".*head.*kernel"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def compiled(kind, **arguments):
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(8, 3, name="conv"), layers.BatchNormalization(name="norm"), layers.ReLU()]
    stack += [layers.Flatten(), layers.Dense(4, name="head")]
    net = keras.Sequential([keras.Input((6, 6, 3)), *stack], name="net")
    optimizer = (
        lb.LARS(0.5, eta=0.001, max_rate=None, unadapted_rate_factor=1.0)
        if kind == "lars"
        else lb.CLARS(0.1, eta=0.01, max_rate=None, unadapted_rate_factor=1.0)
    )
    if kind == "conadv":
        model = lb.ConAdvModel(net, value_range=(-4.0, 4.0), random_start=0.0, targeted=False, **arguments)
    else:
        model = lb.LargeBatchModel(net, **arguments)
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")]
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=metrics)
    return model


def trained(kind, batch_size, arguments):
    """Weights, norms and logs after one epoch, and over how many devices the first kernel is split."""
    model = compiled(kind, **arguments)
    logs = model.fit(X, Y, batch_size=batch_size, shuffle=False, verbose=0).history
    found = {v.path: np.asarray(v.value) for v in model.weights}
    if kind != "lars":
        found.update((f"norm {path}", np.asarray(norm)) for path, norm in model.optimizer.gradient_norms().items())
    kernel = model.trainable_variables[0].value
    split = kernel.size // kernel.addressable_shards[0].data.size
    return model, {**found, **{name: np.asarray(values) for name, values in logs.items()}}, split


CASES = {
    "8 replicas, a smaller last batch": (8, "clars", 24, {}),
    "8 replicas, micro-batches, the last one smaller, sampled": (
        8,
        "clars",
        40,
        {"micro_batch_size": 16, "norm_examples": 12},
    ),
    "8 replicas, ConAdv": (8, "conadv", 40, {}),
    "2 replicas of 4 parts, CLARS": ((2, 4), "clars", 40, {}),
    "2 parts, LARS": ((1, 2), "lars", 40, {}),
    "4 replicas of 2 parts, ConAdv": ((4, 2), "conadv", 40, {}),
}


def difference(found, expected):
    """The largest difference in units of the tolerance 2e-6 + 1e-4 |expected|, and where it is."""
    assert set(found) == set(expected)
    # The bias before a batch norm has no gradient but rounding: absolute.
    ratios = {name: np.abs(found[name] - e).max() / (2e-6 + 1e-4 * np.abs(e).max()) for name, e in expected.items()}
    worst = max(ratios, key=ratios.get)
    return {"tolerances": float(ratios[worst]), "of": worst}


def of_case(kind, name, batch_size, arguments):
    key = json.dumps([name, batch_size, arguments])
    if key not in REFERENCES:
        REFERENCES[key] = trained(name, batch_size, arguments)[1]
    with distribution(kind).scope():
        model, found, split = trained(name, batch_size, arguments)
        report = {**difference(found, REFERENCES[key]), "split": split, "compared": sorted(found)}
        if isinstance(kind, tuple):  # a part of the variables on each device
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "one.npz"
                save_checkpoint(path, model, 3)
                other = compiled(name, **arguments)
                load_checkpoint(path, other)
            report["restored"] = all(
                bool((a.value == b.value).all()) for a, b in zip(model.weights, other.weights, strict=True)
            )
            report["restored split"] = other.trainable_variables[0].value.sharding.spec[-1] == "model"
    return report


# name -> (layout of the first epoch, layout of the second, model)
RESUMED = {
    "from 1 to 2 replicas": (None, 2, "clars"),
    "from 2 replicas to 1": (2, None, "clars"),
    "from 2 parts to 1": ((1, 2), None, "clars"),
    "from 1 to 2 parts": (None, (1, 2), "lars"),
    "from 2 replicas of 2 parts to 4 replicas": ((2, 2), 4, "clars"),
    "from 2 replicas to 1, ConAdv": (2, None, "conadv"),
}


def layout_of(kind):
    return contextlib.nullcontext() if kind is None else distribution(kind).scope()


def epoch_of(kind, name, epoch, before=None):
    """Trains one epoch in a layout, continued from a checkpoint; returns everything that the next one would hold."""
    with layout_of(kind), tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "one.npz"
        model = compiled(name)
        if before is not None:
            path.write_bytes(before)
            assert load_checkpoint(path, model) == epoch
        model.fit(X, Y, batch_size=20, shuffle=False, verbose=0, initial_epoch=epoch, epochs=epoch + 1)
        save_checkpoint(path, model, epoch + 1)
        with np.load(path) as file:
            return path.read_bytes(), {key: file[key] for key in file.files}


def resumed(first, second, name):
    """The first epoch in one layout and the second in another, against both on one device."""
    before, _ = epoch_of(first, name, 0)
    _, found = epoch_of(second, name, 1, before)
    key = f"two epochs, {name}"
    if key not in REFERENCES:
        model = compiled(name)
        model.fit(X, Y, batch_size=20, shuffle=False, verbose=0, epochs=2)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(pathlib.Path(folder) / "two.npz", model, 2)
            with np.load(pathlib.Path(folder) / "two.npz") as file:
                REFERENCES[key] = {key: file[key] for key in file.files}
    return difference(found, REFERENCES[key])


def refusals():
    sentences = []
    batches = ((X[i : i + 20], Y[i : i + 20]) for i in (0, 20))
    for data in ({"x": X, "y": Y, "batch_size": 20}, {"x": X[:36], "y": Y[:36], "batch_size": 16}, {"x": batches}):
        with distribution(8).scope():
            model = compiled("clars")
            try:
                model.fit(**data, verbose=0)
            except ValueError as error:
                sentences.append(str(error))
    return sentences


def runs(folder):
    """The command line on one device, and on seven, which do not divide the images of the test: stopped and resumed."""
    models.NETWORKS["linear"] = linear_network
    flags = ["--model=linear", "--epochs=2", "--batch_size=252", "--verbose=0", "--noise_scale=true"]
    flags += ["--ema_momentum=0.9", "--save_best=val_accuracy"]
    seven = ["--strategy=mirrored", "--replicas=7"]
    layouts = {"seven": (seven, seven), "one, seven": ([], seven), "seven, one": (seven, [])}
    status = [command_line(*flags, f"--output_dir={folder / 'one'}")]
    for name, (first, second) in layouts.items():
        run = [*flags, f"--output_dir={folder / name}"]
        status += [command_line(*run, *first, "--stop_after_epoch=1"), command_line(*run, *second, "--resume")]
    report = {
        "status": status,
        "layout": json.loads((folder / "seven" / "config.json").read_text())["layout"],
        "files": [sorted(p.name for p in (folder / name).iterdir()) for name in ("one", *layouts)],
    }
    metrics = {
        name: {
            f"{k}{i}": np.float64(v)
            for i, row in enumerate(untimed_rows_of(folder / name / "metrics.csv"))
            for k, v in row.items()
        }
        for name in ("one", *layouts)
    }
    for name in layouts:
        report[name] = {
            "weights": difference(arrays_of(folder / name), arrays_of(folder / "one")),
            "metrics": difference(metrics[name], metrics["one"]),
        }
    return report


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    others = {"refusals": refusals, "runs": lambda: runs(pathlib.Path(folder))}
    others.update((name, functools.partial(resumed, *case)) for name, case in RESUMED.items())
    for name in names:
        started = time.process_time()
        found = others[name]() if name in others else of_case(*CASES[name])
        seconds = round(time.process_time() - started, 1)
        print(json.dumps({"case": name, "seconds": seconds, "found": found}), flush=True)
