"""Faults that a run meets: disks, damaged files, NaN, Ctrl-C, two runs at once, too little memory.

The loss of a worker is tested with several processes: tests/distribute/test_multi_worker.py on TensorFlow,
tests/jax/test_two_processes.py on JAX.
"""

from __future__ import annotations

import collections
import errno
import functools
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import faulty_runs
import keras
import numpy as np
import pytest
from selection import long
from train_runs import add_networks, command_line, rows_of

from tf_largebatch import CLARS, LARS, LargeBatchModel, callbacks
from tf_largebatch.callbacks.checkpoint import DamagedCheckpoint, _read, list_checkpoints
from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.files import TEMPORARY
from tf_largebatch.interrupts import INTERRUPTED
from tf_largebatch.train import execute, run_directory
from tf_largebatch.train.config import TrainConfig
from tf_largebatch.train.result import Result

ON_JAX = keras.backend.backend() == "jax"
FLAGS = ("--model=linear", "--optimizer=sgd", "--batch_size=512", "--epochs=3", "--verbose=0")
SEED = 16
pytestmark = pytest.mark.quick_on_jax(
    "test_a_disk_that_fails[ENOSPC-0]",
    "test_a_damaged_checkpoint_is_told_from_a_whole_one",
    "test_metrics_that_lack_an_epoch_are_refused[2]",
    "test_too_little_memory_names_micro_batch_size[without a wrapper]",
    "test_too_little_memory_names_micro_batch_size[micro-batches]",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    add_networks(monkeypatch)
    monkeypatch.setattr(execute, "plot_curves", lambda *args, **kwargs: None)  # drawing takes a second


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run, and how many changes of files it made before the last that is no removal."""
    output_dir, changes = tmp_path_factory.mktemp("faults") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        add_networks(patch)
        patch.setattr(execute, "plot_curves", lambda *args, **kwargs: None)
        watch = faulty_runs.watching(lambda word, path: changes.append(word) if str(output_dir) in path else None)
        with watch:
            assert command_line(*FLAGS, f"--output_dir={output_dir}") == 0
    return output_dir, max(number for number, word in enumerate(changes) if word != "remove")


def weights_of(output_dir):
    _, path = list_checkpoints(output_dir / "checkpoints")[-1]
    return _read(path)


def assert_same_weights(output_dir, undisturbed):
    found, expected = weights_of(output_dir), weights_of(undisturbed)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def resume(output_dir):
    return command_line("--resume", "--verbose=0", f"--output_dir={output_dir}")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with faulty_runs.Server(tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.mark.parametrize("case", [0, *map(long, range(1, 5))])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_fails(number, case, undisturbed, tmp_path, capsys):
    """From some change of a file on every one fails but removals: one sentence, whole files, and a run that goes on."""
    directory, changes = undisturbed
    first = random.Random(f"{SEED} {number} {case}").randrange(2, changes + 1)
    output_dir, seen = tmp_path / "run", []

    def fail(word, path):
        if path.startswith(str(output_dir)):
            seen.append(path)
            if len(seen) > first and word != "remove":
                raise OSError(number, os.strerror(number), path)

    with faulty_runs.watching(fail):
        assert command_line(*FLAGS, f"--output_dir={output_dir}") == 1
    error = capsys.readouterr().err.strip()
    assert re.match(rf"error: {os.strerror(number)} \(.*\)\.", error) and "\n" not in error, error
    assert not [path for path in output_dir.rglob("*") if path.name.startswith((TEMPORARY, ".lock"))]
    if (output_dir / "config.json").exists():
        assert error.endswith("stopped; --resume continues it.")
        assert resume(output_dir) == 0
    else:
        assert command_line(*FLAGS, f"--output_dir={output_dir}") == 0
    assert_same_weights(output_dir, directory)


@pytest.mark.long
@pytest.mark.parametrize("kibibytes", [4, 8, 16, 24, 32])
def test_a_disk_that_is_full(kibibytes, server, undisturbed, tmp_path):
    """A file system in memory that is too small, then large enough."""
    found = server.run(*FLAGS, f"--output_dir={tmp_path}/run", fault={"at": "disk", "kibibytes": kibibytes})
    if found["status"] == faulty_runs.NOT_PERMITTED:
        pytest.skip("this process may not mount a file system")
    first, second = (int(line) for line in re.findall(r"^status (\d+)$", found["out"], re.MULTILINE))
    error = found["err"].strip()
    assert first == 1 and re.match(r"error: No space left on device", error) and "\n" not in error, error
    assert second == 0 and found["status"] == 0
    assert_same_weights(tmp_path / "kept", undisturbed[0])


@pytest.mark.long
def test_a_directory_without_permission(server, tmp_path):
    """The run belongs to another user; `make test` puts a stand-in in place of the check."""
    if os.getuid() != 0:
        pytest.skip("only the superuser can become another user")
    (tmp_path / "theirs").mkdir(mode=0o755)
    tmp_path.chmod(0o711)
    found = server.run(*FLAGS, f"--output_dir={tmp_path}/theirs/run", fault={"at": "user", "number": 65534})
    assert found["status"] == 1 and found["err"].count("\n") == 1
    assert "output_dir must be writable, and" in found["err"]
    assert not list((tmp_path / "theirs").iterdir())


def damaged(content, draw):
    """Cuts a file short, changes a byte, writes zeros over a part, or adds bytes to it."""
    place = draw.randrange(len(content))
    kind = draw.choice(["cut", "byte", "zeros", "more"])
    if kind == "cut":
        return content[:place]
    if kind == "byte":
        return content[:place] + bytes([content[place] ^ draw.randrange(1, 256)]) + content[place + 1 :]
    if kind == "zeros":
        return content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]
    return content + draw.randbytes(draw.randrange(1, 64))


def test_a_damaged_checkpoint_is_told_from_a_whole_one(undisturbed, tmp_path):
    """Fifty damages: each is noticed, or the arrays are those that were saved."""
    _, path = list_checkpoints(undisturbed[0] / "checkpoints")[-1]
    draw, expected, noticed = random.Random(SEED), _read(path), 0
    for _ in range(50):
        (tmp_path / "c.npz").write_bytes(damaged(path.read_bytes(), draw))
        try:
            found = _read(tmp_path / "c.npz")
        except DamagedCheckpoint as error:
            assert "c.npz is damaged: remove it" in str(error)
            noticed += 1
            continue
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    assert noticed > 30


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "result.json"])
def test_a_damaged_record_is_named_or_read(name, undisturbed, tmp_path):
    """Fifty damages: a reader raises one sentence that names the file, or reads what is still of its form."""
    readers = {
        "config.json": run_directory.read_arguments,
        "metrics.csv": lambda directory: read_metrics(directory / "metrics.csv"),
        "result.json": Result.read,
    }
    content, draw, noticed = (undisturbed[0] / name).read_bytes(), random.Random(SEED), 0
    for _ in range(50):
        (tmp_path / name).write_bytes(damaged(content, draw))
        try:
            readers[name](tmp_path)
        except ValueError as error:
            assert name in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 15
    for place in draw.sample(range(len(content) - 1), 50):  # cut short
        (tmp_path / name).write_bytes(content[:place])
        if name == "metrics.csv" and content[:place].endswith(b"\n"):
            continue  # whole rows: `test_metrics_that_lack_an_epoch_are_refused`
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            readers[name](tmp_path)


@pytest.mark.parametrize("left", [None, 0, 2])
def test_metrics_that_lack_an_epoch_are_refused(left, undisturbed, tmp_path, capsys):
    """Of three epochs: the file is missing, has no rows, or lacks the last one."""
    output_dir = tmp_path / "run"
    shutil.copytree(undisturbed[0], output_dir)
    for name in ("result.json", "final.keras"):
        (output_dir / name).unlink()
    lines = (output_dir / "metrics.csv").read_text().splitlines(keepends=True)
    (output_dir / "metrics.csv").unlink()
    if left is not None:
        (output_dir / "metrics.csv").write_text("".join(lines[: left + 1]))
    assert resume(output_dir) == 1
    error = capsys.readouterr().err
    epoch = (left or 0) + 1
    assert f"metrics.csv must have a row for each of the 3 epochs done, and epoch {epoch} has none: restore" in error


@pytest.mark.long
@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("streamed", [False, True])
def test_a_damaged_tfrecord(streamed, case, tfds_directory, tmp_path, monkeypatch, capsys):
    """A set that is kept in memory is refused before anything is written; one that is streamed stops the run."""
    if streamed:
        monkeypatch.setattr("tf_largebatch.data.memory.IN_MEMORY_BYTES", 0)
    draw = random.Random(f"{SEED} {case}")
    shutil.copytree(tfds_directory, tmp_path / "data")
    (path,) = (tmp_path / "data").rglob("*train.tfrecord*")
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if case % 2:
        del content[place:]
    else:
        content[place] ^= 0xFF
    path.write_bytes(content)
    flags = ("--dataset=fault_pictures", f"--data_dir={tmp_path / 'data'}", "--image_size=16", "--batch_size=8")
    status = command_line(*FLAGS[:2], *flags, "--epochs=1", "--verbose=0", f"--output_dir={tmp_path / 'run'}")
    error = capsys.readouterr().err.strip()
    assert status == 1 and re.match("error: dataset 'fault_pictures' cannot be read", error), error
    assert "\n" not in error and (tmp_path / "run").exists() == streamed
    assert re.search(r"\((corrupted|truncated) record at \d+.*\): prepare it again\.$", error), error


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
    """A prepared set of 24 pictures."""
    tfds = pytest.importorskip("tensorflow_datasets")
    directory = tmp_path_factory.mktemp("tfds")

    class FaultPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            picture = tfds.features.Image(shape=(16, 16, 3), encoding_format="png")
            label = tfds.features.ClassLabel(num_classes=3)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": picture, "label": label})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(24), "test": self._generate_examples(6)}

        def _generate_examples(self, count):
            noise = np.random.default_rng(0)
            for i in range(count):
                yield i, {"image": noise.integers(0, 256, (16, 16, 3)).astype(np.uint8), "label": i % 3}

    FaultPictures(data_dir=str(directory)).download_and_prepare()
    return directory


def wrapped(optimizer):
    inputs = keras.Input((4,))
    model = LargeBatchModel(keras.Model(inputs, keras.layers.Dense(3, name="d")(inputs)))
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def examples(count=8):
    random_ = np.random.default_rng(0)
    return {
        "x": random_.normal(size=(count, 4)).astype("float32"),
        "y": random_.normal(size=(count, 3)).astype("float32"),
        "sample_weight": np.ones(count, "float32"),
    }


@pytest.mark.parametrize("value", [np.nan, long(np.inf)])
@pytest.mark.parametrize("where", ["x", *map(long, ("y", "sample_weight"))])
def test_one_number_that_is_not_finite_stops_training_and_leaves_the_checkpoint_before(where, value, tmp_path):
    model, given = wrapped(CLARS(0.1)), examples()
    recorders = [
        callbacks.MetricsRecorder(tmp_path / "metrics.csv", images_per_epoch=8),
        callbacks.RunCheckpoint(tmp_path / "checkpoints"),
    ]
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0, "callbacks": recorders}
    model.fit(**given, epochs=1, **settings)
    before = [np.array(v) for v in [*model.variables, *model.optimizer.variables]]
    given[where].flat[0] = value
    with pytest.raises(callbacks.TrainingDiverged, match=r"the loss is (nan|inf) in epoch 2, after 4 updates: lower"):
        model.fit(**given, initial_epoch=1, epochs=3, **settings)
    assert [epoch for epoch, _ in list_checkpoints(tmp_path / "checkpoints")] == [1]
    assert [row["epoch"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2"]
    callbacks.load_checkpoint(tmp_path / "checkpoints" / "epoch-0001.npz", model)
    for old, new in zip(before, [*model.variables, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(old, new)
        assert np.isfinite(old).all()


@pytest.mark.parametrize("value", [np.nan, long(np.inf)])
@pytest.mark.parametrize("kind", [CLARS, long(LARS)])
def test_loss_scaling_skips_an_update_that_is_not_finite(kind, value):
    optimizer = keras.optimizers.LossScaleOptimizer(kind(0.1), initial_scale=8.0)
    model, given = wrapped(optimizer), examples()
    model.train_on_batch(**given)
    before = [np.array(v) for v in model.trainable_variables]
    bad = {name: array.copy() for name, array in given.items()}
    bad["x"][0, 0] = value
    model.train_on_batch(**bad)
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(optimizer.dynamic_scale) == 4.0 and int(optimizer.inner_optimizer.iterations) == 1
    model.train_on_batch(**given)
    assert all(np.isfinite(np.array(v)).all() for v in model.variables)


@pytest.mark.long
@pytest.mark.skipif(ON_JAX, reason="JAX has no replicas: one program computes on global arrays")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_of_one_replica_that_is_not_finite(value, scaled, two_replicas, tmp_path):
    """Both replicas skip the update, or both have the same weights and training stops."""
    given = examples()
    with two_replicas.scope():
        inputs = keras.Input((4,))
        model = LargeBatchModel(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
        optimizer = CLARS(0.1)
        model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, "mse")
    recorder = callbacks.MetricsRecorder(tmp_path / "metrics.csv", images_per_epoch=8)
    model.fit(given["x"], given["y"], batch_size=8, verbose=0, callbacks=[recorder])
    before = [np.array(v) for v in model.trainable_variables]
    given["x"][5, 0] = value  # the second replica has examples 4 to 7
    with pytest.raises(callbacks.TrainingDiverged):
        model.fit(given["x"], given["y"], batch_size=8, shuffle=False, verbose=0, callbacks=[recorder])
    for variable, old in zip(model.trainable_variables, before, strict=True):
        one, other = (part.numpy() for part in two_replicas.experimental_local_results(variable.value))
        np.testing.assert_array_equal(one, other)
        assert not scaled or (one == old).all()


def out_of_memory():
    if ON_JAX:
        import jax

        return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")
    import tensorflow as tf

    return tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[512,64]")


def run_out_of_memory(monkeypatch):
    """Puts the error in place of Keras's fit."""

    @functools.wraps(keras.Model.fit)
    def failing(*args, **kwargs):
        raise out_of_memory()

    monkeypatch.setattr(keras.Model, "fit", failing)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            FLAGS,
            r" with 512 examples at a time; micro_batch_size=None: pass micro_batch_size=256, about the largest that "
            "fits, or micro_batch_size='auto' to have it found",
        ),
        (
            ("--model=linear", "--optimizer=clars", "--verbose=0"),
            "; micro_batch_size=None: pass a part of the batch's examples, or micro_batch_size='auto' to have the "
            "largest that fits found",
        ),
        (
            (*FLAGS, "--micro_batch_size=128"),
            r" with 128 examples at a time; micro_batch_size=128: pass micro_batch_size=64, about the largest that "
            "fits, or micro_batch_size='auto' to have it found",
        ),
    ],
    ids=["without a wrapper", "with norms", "micro-batches"],
)
def test_too_little_memory_names_micro_batch_size(flags, says, tmp_path, monkeypatch, capsys):
    """A wrapper knows the size of the batch once its step is traced; here it is not."""
    run_out_of_memory(monkeypatch)
    assert command_line(*flags, f"--output_dir={tmp_path / 'run'}") == 1
    expected = f"error: The training step ran out of memory{says}. The run that takes it needs another output_dir.\n"
    assert capsys.readouterr().err == expected


def test_too_little_memory_for_one_example(tmp_path, monkeypatch, capsys):
    run_out_of_memory(monkeypatch)
    config = TrainConfig.from_flags(
        model="linear", optimizer="sgd", batch_size=1, output_dir=str(tmp_path / "run"), verbose=0
    )
    with pytest.raises(MemoryError, match="with 1 example at a time: not even micro_batch_size=1 fits; use a smaller"):
        execute.train(config)


@pytest.mark.parametrize("seconds", [0.1, *map(long, (0.5, 1.0, 2.0, 4.0))])
def test_ctrl_c_while_python_imports(seconds, tmp_path):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tf_largebatch.train", "--epochs=100000", "--verbose=0", "--output_dir=run"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        # Where the tests run in the background, Ctrl-C is ignored, and the processes that they start would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # Before the package is reached, Python itself prints a traceback. Keras's import of NumPy comes after it.
    while "numpy" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED and "Traceback" not in error
    assert error.endswith(
        (
            "interrupted: nothing was written.\n",
            "since no epoch was whole.\n",
            "continues after the last whole epoch.\n",
        )
    )


@pytest.mark.long
def test_fifty_times_ctrl_c(server, undisturbed, tmp_path, capsys):
    """At a random time: one sentence, or the end of the run; what continues ends with the same weights."""
    draw, statuses, output_dir = random.Random(SEED), collections.Counter(), tmp_path / "run"
    for _ in range(50):
        if (output_dir / "result.json").exists():
            assert_same_weights(output_dir, undisturbed[0])
            shutil.rmtree(output_dir)
        begun = (output_dir / "config.json").exists()
        flags = ("--resume", "--verbose=0") if begun else FLAGS
        fault = {"at": "time", "seconds": draw.uniform(0, 2), "signal": "SIGINT"}
        found = server.run(*flags, f"--output_dir={output_dir}", fault=fault)
        statuses[found["status"]] += 1
        error = found["err"].strip()
        if found["status"]:
            assert found["status"] == INTERRUPTED, found
            assert re.fullmatch("interrupted: (--resume --output_dir=.* continues .*|nothing was written).", error)
            assert not [path for path in output_dir.rglob("*") if path.name.startswith((TEMPORARY, ".lock"))]
        else:
            assert not error
    found = server.run("--resume", "--verbose=0", f"--output_dir={output_dir}")
    assert found["status"] == 0, found["err"]
    assert_same_weights(output_dir, undisturbed[0])
    with capsys.disabled():
        print(f"\nCtrl-C: {dict(statuses)}")


@pytest.mark.long
@pytest.mark.parametrize("case", range(5))
def test_two_runs_into_one_directory(case, server, undisturbed, tmp_path):
    """They start together: one trains, the other is refused, whether the run is new or resumed."""
    output_dir = f"--output_dir={tmp_path / 'run'}"
    flags = FLAGS
    if case > 2:
        assert server.run(*FLAGS, "--stop_after_epoch=1", output_dir)["status"] == 0
        flags = ("--resume", "--verbose=0")
    found = sorted(server.run_together([(*flags, output_dir)] * 2), key=lambda one: one["status"])
    assert [one["status"] for one in found] == [0, 1], found
    refused = r"is in use by|holds a run: add --resume|was changed by another run in the meantime"
    assert re.search(refused, found[1]["err"]) and found[1]["err"].count("\n") == 1
    assert_same_weights(tmp_path / "run", undisturbed[0])
