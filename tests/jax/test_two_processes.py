"""JAX only: two processes train together; one is killed, both go on from the checkpoint, and nothing is lost."""

from __future__ import annotations

import json
import signal
import socket
import subprocess

import jax
import keras
import numpy as np
import programs
import pytest

from tf_largebatch.backend.jax import layout, processes
from tf_largebatch.callbacks import checkpoint
from tf_largebatch.distribute import strategies

SECONDS = 240  # of a process, on a machine that is doing other work


def started(command, devices=1, **variables):
    return subprocess.Popen(
        command,
        env=programs.environment(devices, **variables),
        cwd=programs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ended(*processes):
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def both(folder, model, killed=None):
    port = free_port()
    return [
        started(
            programs.command("two_processes_run.py", folder, model, number, 2, port, 3, 1 if number == killed else -1),
            devices=2 if "parts" in model else 1,
        )
        for number in (0, 1)
    ]


def weights(folder, process, processes):
    return list(np.load(folder / f"weights_{process}_of_{processes}.npz").values())


@pytest.mark.long
@pytest.mark.parametrize("model, killed", [("clars", 1), ("conadv", 0), ("parts", 1), ("parts of all", 0)])
def test_one_of_two_processes_is_killed_and_both_go_on(model, killed, tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        folder.mkdir()
    status, outputs = ended(*both(together, model, killed))
    assert status[killed] == -signal.SIGKILL
    assert status[1 - killed] == 1, outputs[1 - killed][-3000:]  # at once, with a sentence
    last = outputs[1 - killed].strip().splitlines()[-1]
    assert "Another process of the training has ended or cannot be reached" in last, last
    assert "start all processes again, and resume from the last checkpoint." in last
    assert [path.name for path in together.iterdir()] == ["epoch-0001.npz"]  # whole, and no temporary file
    status, outputs = ended(*both(together, model))
    assert status == [0, 0], outputs
    assert sorted(path.name for path in together.glob("epoch*")) == ["epoch-0002.npz", "epoch-0003.npz"]
    status, outputs = ended(started(programs.command("two_processes_run.py", alone, model, 0, 1, 0, 3)))
    assert status == [0], outputs
    for a, b, c in zip(weights(together, 0, 2), weights(together, 1, 2), weights(alone, 0, 1), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=2e-6)


FLAGS = [
    "--model=linear",
    "--epochs=3",
    "--batch_size=256",
    "--ema_momentum=0.9",
    "--save_best=val_loss",
    "--verbose=0",
]


def workers(output_dir, *flags, of_second=(), **variables):
    addresses = [f"localhost:{free_port()}" for _ in range(2)]
    flags = [*FLAGS, f"--output_dir={output_dir}", "--strategy=multi_worker", *flags]
    return [
        started(
            programs.command("worker.py", *flags, *(of_second if index else ())),
            TF_CONFIG=json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
            **(variables if index else {}),
        )
        for index in (0, 1)
    ]


@pytest.mark.long
def test_the_command_line_on_two_workers_of_which_one_is_killed(tmp_path):
    accident, alone = tmp_path / "accident", tmp_path / "alone"
    status, outputs = ended(*workers(accident, DIE_IN_EPOCH="3"))
    assert status == [1, -signal.SIGKILL], outputs
    last = outputs[0].strip().splitlines()[-1]
    assert last.startswith("error: Another process of the training has ended") and "--resume continues it." in last
    assert [epoch for epoch, _ in checkpoint.list_checkpoints(accident / "checkpoints")] == [1, 2]
    status, outputs = ended(*workers(accident, "--resume"))
    assert status == [0, 0], outputs
    assert "test accuracy" in outputs[0] and "accuracy" not in outputs[1]
    status, outputs = ended(started(programs.command("worker.py", *FLAGS, f"--output_dir={alone}")))
    assert status == [0], outputs
    for name in ("checkpoints/epoch-0003.npz",):
        found, expected = (dict(np.load(folder / name)) for folder in (accident, alone))
        for key, array in expected.items():
            np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-5, err_msg=key)
    assert {path.name for path in accident.iterdir()} == {path.name for path in alone.iterdir()}
    assert json.loads((accident / "config.json").read_text())["layout"] == {"strategy": "multi_worker", "replicas": 2}
    status, outputs = ended(*workers(tmp_path / "unequal", of_second=["--seed=1"]))
    assert status == [1, 1], outputs
    sentence = "error: Every process must have the same seed; received seed=0 in process 0 and seed=1 in process 1"
    assert all(sentence in output for output in outputs), outputs
    assert not (tmp_path / "unequal").exists()
    status, outputs = ended(*workers(alone))  # which the first worker alone looks at
    assert status == [1, 1], outputs
    assert all("holds a run: add --resume to continue it" in output for output in outputs), outputs


# What needs no second process.


class Second:
    """Another process in the place of this one."""

    def __init__(self, monkeypatch, texts=None):
        monkeypatch.setattr(processes.jax, "process_index", lambda: 1)
        if texts is not None:
            monkeypatch.setattr(processes, "exchanged", lambda text: [text, *texts])


def test_the_first_process_writes_checkpoints(monkeypatch, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with monkeypatch.context() as patched:
        Second(patched)
        checkpoint.save_checkpoint(tmp_path / "epoch-0001.npz", model, 1)
        assert not list(tmp_path.iterdir())
    checkpoint.save_checkpoint(tmp_path / "epoch-0001.npz", model, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001.npz"]


def test_processes_that_differ_are_refused(monkeypatch):
    processes.agree({"seed": 1}, "give every worker the same flags")
    Second(monkeypatch, [json.dumps({"seed": 1, "batch_size": 8})])
    with pytest.raises(
        ValueError, match="same batch_size; received batch_size=4 in process 0 and batch_size=8 in process 1"
    ):
        processes.agree({"seed": 1, "batch_size": 4}, "give every worker the same flags")


def test_a_refusal_of_one_process_is_that_of_all(monkeypatch):
    Second(monkeypatch, [""])
    with processes.refusing_together():
        pass
    with pytest.raises(KeyError), processes.refusing_together():
        raise KeyError  # no refusal
    with pytest.raises(ValueError, match="own"), processes.refusing_together():
        raise ValueError("own")
    Second(monkeypatch, ["output_dir is not empty"])
    with pytest.raises(ValueError, match="process 1: output_dir is not empty"), processes.refusing_together():
        pass


def test_a_lost_process_is_one_sentence(monkeypatch):
    error = jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer\nmore")
    others = (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), ValueError("batch_size must be 1 or more"))
    registered = []
    monkeypatch.setattr(processes.atexit, "register", lambda *arguments: registered.append(arguments))
    with pytest.raises(jax.errors.JaxRuntimeError), processes.explaining_lost_processes():
        raise error  # of one process alone
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with (
        pytest.raises(processes.ProcessLost, match=r"\(Gloo all-reduce failed: Connection closed by peer\): start all"),
        processes.explaining_lost_processes(),
    ):
        raise error
    for other in others:
        with pytest.raises(type(other), match=str(other)), processes.explaining_lost_processes():
            raise other
    assert registered == [(processes.leave, 1)]


def test_workers_that_are_not_named(monkeypatch):
    def initialize(*arguments):
        given.append(arguments)
        raise ValueError("coordinator_address should be defined.")

    given = []
    monkeypatch.setattr(layout.jax.distributed, "initialize", initialize)
    sentence = r"cannot connect the workers \(coordinator_address should be defined\): set TF_CONFIG, or"
    with pytest.raises(ValueError, match=sentence):
        layout.join(None, None, None)
    monkeypatch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", "10.0.0.1:1234,10.0.0.2:1234")
    monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", "1")
    with pytest.raises(ValueError, match=sentence):
        layout.join(None, None, None)
    config = {"cluster": {"chief": ["c:1"], "worker": ["w:1", "x:1"]}, "task": {"type": "worker", "index": 1}}
    with pytest.raises(ValueError, match=sentence):
        strategies.join("multi_worker", {"TF_CONFIG": json.dumps(config)})
    assert given == [(None, None, None), ("10.0.0.1:1234", 2, 1), ("c:1", 3, 2)]


def test_devices_that_are_not_there():
    jax.devices()  # from now on their number stays
    with pytest.raises(ValueError, match="strategy=mirrored needs GPUs, of which this machine has none: pass replicas"):
        layout.devices_of_this_host(None)
    with pytest.raises(ValueError, match="needs 64 devices; received a machine with 1 of kind CPU: pass fewer"):
        layout.devices_of_this_host(64)
    with pytest.raises(ValueError, match="strategy=tpu found no TPU at tpu='local': JAX uses the CPU"):
        layout.cores_of_the_tpu("local")
