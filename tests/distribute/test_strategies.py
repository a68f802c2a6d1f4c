"""What is refused before any device is touched, and which batches fit."""

from __future__ import annotations

import json

import pytest
from absl import flags
from comparing import ON_JAX, tensorflow_only

from tf_largebatch import train
from tf_largebatch.distribute import strategies

WORKERS = ["host0:1", "host1:1"]


def environ(cluster=None, task=("worker", 0)):
    cluster = {"worker": WORKERS} if cluster is None else cluster
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": task[0], "index": task[1]}})}


@pytest.mark.parametrize(
    "name, replicas, environment, message",
    [
        ("two_devices", None, {}, "strategy must be one of one_device, .*strategy='two_devices'"),
        ("tpu", 2, {}, "replicas applies to strategy=mirrored; received replicas=2 with strategy='tpu'"),
        ("mirrored", 0, {}, "replicas must be at least 1; received replicas=0"),
        pytest.param(
            *("multi_worker", None, {}, "needs TF_CONFIG, which is not set: for example"), marks=tensorflow_only
        ),
        ("mirrored", 2, environ(), "'mirrored' trains on one host, but TF_CONFIG names 2 workers"),
        ("one_device", None, environ(), "unset TF_CONFIG"),
        ("multi_worker", None, {"TF_CONFIG": "worker"}, "TF_CONFIG must be JSON, .*received 'worker'"),
        ("multi_worker", None, {"TF_CONFIG": "[]"}, "TF_CONFIG must be a JSON object"),
        ("multi_worker", None, environ({}), "must name workers"),
        ("multi_worker", None, environ({"worker": WORKERS, "ps": ["host2:1"]}), "must name workers"),
        ("multi_worker", None, environ({"worker": ["a:1", "a:1"]}), "an address of its own"),
        ("multi_worker", None, environ(task=("worker", 2)), "type='worker', index=2 with 2 workers"),
        ("multi_worker", None, environ(task=("chief", 0)), "type='chief', index=0"),
        ("multi_worker", None, environ(task=("worker", "0")), "index='0'"),
    ],
)
def test_contradictions(name, replicas, environment, message):
    with pytest.raises(ValueError, match=message):
        strategies.check(name, replicas, environment)


def test_what_is_accepted():
    strategies.check("one_device", environ={})
    strategies.check("one_device", environ=environ({"worker": WORKERS[:1]}))
    strategies.check("mirrored", 2, {})
    strategies.check("tpu", environ={})
    strategies.check("multi_worker", environ=environ(task=("worker", 1)))
    strategies.check("multi_worker", environ=environ({"chief": ["c:1"], "worker": WORKERS}, ("worker", 1)))


@tensorflow_only
@pytest.mark.parametrize(
    "cluster, task, chief",
    [
        ({"worker": WORKERS}, ("worker", 0), True),
        ({"worker": WORKERS}, ("worker", 1), False),
        ({"chief": ["c:1"], "worker": WORKERS}, ("worker", 0), False),
        ({"chief": ["c:1"], "worker": WORKERS}, ("chief", 0), True),
    ],
)
def test_who_writes(cluster, task, chief):
    assert strategies.is_chief("multi_worker", environ(cluster, task)) == chief


def test_the_name_of_a_worker():
    """On JAX it is the number of a process that has joined the others, here of none."""
    assert strategies.task_name(environ(task=("worker", 1))) == f"worker-{0 if ON_JAX else 1}"


def test_one_process_writes():
    assert all(strategies.is_chief(name, {}) for name in ("one_device", "mirrored", "tpu"))


@tensorflow_only
def test_devices_that_are_not_there(monkeypatch):
    import tensorflow as tf

    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=r"strategy=tpu found no TPU at tpu='local': "):
        strategies.build("tpu")
    with pytest.raises(ValueError, match="which this machine has none: pass replicas"):
        strategies.build("mirrored")
    # The test session has started TensorFlow with two.
    with pytest.raises(ValueError, match=r"replicas=3 needs as many logical CPUs, .* started with 2"):
        strategies.build("mirrored", 3)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    with pytest.raises(ValueError, match="needs 2 GPUs; received a machine with 1"):
        strategies.build("mirrored")


def test_one_device_is_no_strategy():
    if ON_JAX:
        layout = strategies.layout("one_device")
        assert (layout.replicas, layout.whole_batches, layout.processes) == (1, False, 1)
        return
    import tensorflow as tf

    assert strategies.build("one_device") is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    "batch_size, replicas, micro_batch_size, message",
    [
        (100, 8, None, "multiple of the 8 replicas; received batch_size=100: the nearest that fit are 96 and 104"),
        (3, 8, None, "received batch_size=3: the smallest that fits is 8"),
        (100, 1, 32, "whole micro-batches; received batch_size=100 with micro_batch_size=32: .* are 96 and 128"),
        (100, 2, 32, "on each of 2 replicas; received batch_size=100 with .*: the nearest that fit are 64 and 128"),
    ],
)
def test_batches_that_do_not_fit(batch_size, replicas, micro_batch_size, message):
    with pytest.raises(ValueError, match=message):
        strategies.check_batch(batch_size, replicas, micro_batch_size)
    strategies.check_batch(98304, 256, 96)


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param(
            *(["--strategy=multi_worker", "--output_dir=runs/a"], "needs TF_CONFIG, which is not set"),
            marks=tensorflow_only,
        ),
        (["--strategy=mirrored"], "pass replicas, the number of logical devices"),
        (["--strategy=tpu"], "strategy=tpu found no TPU"),
        (
            ["--strategy=tpu", "--ema_momentum=0.9"],
            "ema_momentum must be left out with strategy=tpu; received ema_momentum=0.9: it applies to every other",
        ),
        (["--tpu=local"], "tpu must be left out with strategy=one_device; received tpu='local': it applies"),
        (["--replicas=2"], "replicas must be left out with strategy=one_device; received replicas=2: it applies to"),
    ],
)
def test_the_command_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    assert train.main(["train"], values) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_workers_must_share_a_directory(monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", environ()["TF_CONFIG"])
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", "--strategy=multi_worker"])
    assert train.main(["train"], values) == 1
    assert "output_dir must be given with strategy=multi_worker" in capsys.readouterr().err
