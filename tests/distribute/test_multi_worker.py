"""Two processes on loopback under MultiWorkerMirroredStrategy, by the command line."""

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

from tf_largebatch.callbacks.checkpoint import list_checkpoints

WORKER = pathlib.Path(__file__).with_name("worker.py")
FLAGS = ["--model=tiny", "--epochs=3", "--batch_size=256", "--norm_examples=64", "--verbose=0"]
SECONDS = 100  # of the slowest process, on a machine that is doing other work


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of the same run by one process with two replicas, by two workers, and by two with an accident."""
    root = tmp_path_factory.mktemp("runs")
    paths = {name: root / name for name in ("one_process", "two_workers", "accident")}
    first, second = start_both(paths["accident"], environ_of_second={"DIE_IN_EPOCH": "3"}.items())
    one = start(paths["one_process"], "--strategy=mirrored", "--replicas=2")
    second.communicate(timeout=SECONDS)
    assert second.returncode == -signal.SIGKILL
    # What is left of the cluster fails or waits; whoever starts the workers ends and restarts them all.
    first.kill()
    first.communicate(timeout=SECONDS)
    assert [epoch for epoch, _ in list_checkpoints(paths["accident"] / "checkpoints")] == [1, 2]
    succeed(one)
    succeed(*start_both(paths["accident"], "--resume"))
    outputs = succeed(*start_both(paths["two_workers"]))
    return paths, outputs


def test_two_workers_equal_one_process_with_two_replicas(runs):
    paths, _ = runs
    found, expected = state_of(paths["two_workers"]), state_of(paths["one_process"])
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_workers_that_were_killed_and_restarted_end_with_the_same_weights(runs):
    paths, _ = runs
    found, expected = state_of(paths["accident"]), state_of(paths["two_workers"])
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_first_worker_alone_writes_and_speaks(runs):
    paths, (first, second) = runs
    assert "test accuracy" in first
    assert "accuracy" not in second
    written = {path.name for path in paths["two_workers"].iterdir()}
    assert {"config.json", "metrics.csv", "final.keras", "result.json"} <= written
    # Not even of the worker that was killed, which could not clean up.
    assert not list(paths["two_workers"].glob(".*")) and not list(paths["accident"].glob(".*"))
    assert json.loads((paths["two_workers"] / "config.json").read_text())["layout"] == {
        "strategy": "multi_worker",
        "replicas": 2,
    }
    assert (paths["accident"] / "metrics.csv").read_text().count("\n") == 4  # a header and three epochs
