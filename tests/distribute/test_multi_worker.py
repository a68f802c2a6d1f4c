"""Two processes on loopback under MultiWorkerMirroredStrategy, by the command line.

TensorFlow only: it tests tf.distribute. tests/jax/test_several_devices.py tests keras.distribution.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from selection import long
from train_runs import add_networks, command_line

from tf_largebatch.callbacks.checkpoint import list_checkpoints
from tf_largebatch.distribute import strategies

WORKER = pathlib.Path(__file__).with_name("worker.py")
FLAGS = ["--model=tiny", "--epochs=3", "--batch_size=256", "--norm_examples=64", "--verbose=0"]
CALLBACKS = ("--ema_momentum=0.9", "--save_best=val_accuracy", "--tensorboard")
SECONDS = 300  # of the slowest process, on a machine that is doing other work


def start(output_dir, *flags, index=None, ports=(), environ=()):
    environment = {**os.environ, **dict(environ), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if index is not None:
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    command = [sys.executable, str(WORKER), *FLAGS, f"--output_dir={output_dir}", *flags]
    root = WORKER.parents[2]
    return subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_both(output_dir, *flags, environ_of_second=()):
    with socket.socket() as one, socket.socket() as two:
        for some in (one, two):
            some.bind(("localhost", 0))
        ports = [some.getsockname()[1] for some in (one, two)]
    flags = ["--strategy=multi_worker", *flags]
    first = start(output_dir, *flags, index=0, ports=ports)
    return first, start(output_dir, *flags, index=1, ports=ports, environ=environ_of_second)


def succeed(*processes):
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs


def state_of(output_dir):
    epoch, path = list_checkpoints(output_dir / "checkpoints")[-1]
    assert epoch == 3
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module", params=[(), long(CALLBACKS)], ids=["plain", "callbacks"])
def two_workers(request, tmp_path_factory):
    """The directory of a run by two workers, what they printed, and the flags of the run."""
    path = tmp_path_factory.mktemp("runs") / "two_workers"
    return path, succeed(*start_both(path, *request.param)), request.param


def test_two_workers_equal_one_process_with_two_replicas(two_workers, two_replicas, tmp_path, monkeypatch):
    add_networks(monkeypatch)
    monkeypatch.setattr(strategies, "build", lambda *_: two_replicas)
    path, _, flags = two_workers
    assert command_line(*FLAGS, *flags, "--strategy=mirrored", "--replicas=2", f"--output_dir={tmp_path / 'run'}") == 0
    found, expected = state_of(path), state_of(tmp_path / "run")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_workers_that_were_killed_and_restarted_end_with_the_same_weights(two_workers, tmp_path):
    flags, path = two_workers[2], tmp_path / "run"
    first, second = start_both(path, *flags, environ_of_second={"DIE_IN_EPOCH": "3"}.items())
    second.communicate(timeout=SECONDS)
    assert second.returncode == -signal.SIGKILL
    # What is left of the cluster fails or waits; whoever starts the workers ends and restarts them all.
    first.kill()
    first.communicate(timeout=SECONDS)
    assert [epoch for epoch, _ in list_checkpoints(path / "checkpoints")] == [1, 2]
    succeed(*start_both(path, *flags, "--resume"))
    # Not even of the worker that was killed, which could not clean up.
    assert not list(path.glob(".*"))
    assert (path / "metrics.csv").read_text().count("\n") == 4  # a header and three epochs
    found, expected = state_of(path), state_of(two_workers[0])
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_first_worker_alone_writes_and_speaks(two_workers):
    path, (first, second), flags = two_workers
    assert "test accuracy" in first
    assert "accuracy" not in second
    written = {file.name for file in path.iterdir()}
    assert {"config.json", "metrics.csv", "final.keras", "result.json"} <= written
    assert ({"best.keras", "tensorboard"} <= written) == bool(flags)
    assert not list(path.glob(".*"))
    assert json.loads((path / "config.json").read_text())["layout"] == {
        "strategy": "multi_worker",
        "replicas": 2,
    }
