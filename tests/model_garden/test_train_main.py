"""The command line: runs of the real main, every official config, interruption, and errors in one sentence."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import imagenet_like
import model_garden_runs as runs
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from selection import long_unless

from official_configs import CONFIGS, FILES, content_of, experiment_of
from tf_largebatch.model_garden import registry_imports  # noqa: F401  (it registers)

# Few filters, and few layers where the backbone allows it.
SMALL_BACKBONES = {
    "resnet": {"model_id": 10, "depth_multiplier": 0.125},
    "densenet": {"block_repeats": [1, 1], "growth_rate": 4},
    "mobilenet": {"filter_size_scale": 0.25},
    "efficientnet": {"model_id": "b0"},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return imagenet_like.write_records(tmp_path_factory.mktemp("records") / "train-00000.tfrecord")


def shrunk(experiment, path, records):
    """Overrides that shrink an official config to a step of a second."""
    backbone = runs.params_of(experiment, content_of(path)).task.model.backbone.type
    data = {"dtype": "float32", "tfds_name": "", "tfds_split": ""}
    return runs.merged(
        runs.tiny(records),
        {"task": {"model": {"backbone": {backbone: SMALL_BACKBONES[backbone]}}}},
        {"task": {"train_data": data, "validation_data": data}, "runtime": {"mixed_precision_dtype": None}},
    )


# One of each kind trains its step as users do, in a compiled loop. The rest does so eagerly, without the time that it
# takes to make a graph: half a minute for EfficientNet.
IN_GRAPH = {
    "clars_resnet50_16k",
    "clars_densenet121_16k",
    "clars_mobilenetv2_16k",
    "lars_resnet50_16k",
    "conadv_resnet50_16k",
    "conadv_autoaugment_resnet50_16k",
}
EAGER = {"train_tf_function": False, "train_tf_while_loop": False}
# A policy of two operations in place of the papers' 25 pairs.
SHORT_POLICY = {"conadv": {"augment": {"autoaug": {"augmentation_name": "test"}}}}


# One of each optimizer and one with adversarial images, on two backbones.
QUICK = ("clars_resnet50_16k", "conadv_resnet50_16k", "lars_densenet121_16k")
QUICK = [path for path in FILES if str(path.with_suffix("")) in QUICK]


@pytest.mark.parametrize("path", long_unless(FILES, QUICK), ids=str)
def test_a_step_of_every_config(path, records, tmp_path):
    experiment = experiment_of(path)
    override = shrunk(experiment, path, records)
    if path.stem not in IN_GRAPH:
        override = runs.merged(override, {"trainer": EAGER})
        if "autoaugment" in path.name:
            override = runs.merged(override, {"task": SHORT_POLICY})
    assert runs.run_main(tmp_path, experiment, override, [CONFIGS / path]) == 0
    saved = runs.checkpoint(tmp_path)
    assert saved["global_step/.ATTRIBUTES/VARIABLE_VALUE"] == 1
    assert all(np.all(np.isfinite(value)) for value in saved.values() if value.dtype.kind == "f")


def steps(count, **trainer):
    return {"trainer": {"train_steps": count, "checkpoint_interval": 2, **trainer}}


def to_be_interrupted(records, **task):
    """Overrides of runs that are to end alike, whatever their lengths.

    The same batch every step, so that it does not matter that Model Garden's data start anew, and the rates of one long
    training, which the shorter runs must not derive from their own lengths.
    """
    decay = {"initial_learning_rate": 0.5, "decay_steps": 50}
    warmup = {"type": "linear", "linear": {"warmup_steps": 2}}
    rates = {"optimizer_config": {"learning_rate": {"polynomial": decay}, "warmup": warmup}}
    fixed = {"task": task, "trainer": rates, "runtime": {"mixed_precision_dtype": None}}
    return runs.merged(runs.tiny(records), runs.TINY, fixed)


def assert_same_state(found, expected):
    """Of two runs that differ in nothing else: equal to float32's last digits."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def test_interrupted_equals_undisturbed(records, tmp_path):
    base, experiment = runs.merged(to_be_interrupted(records), {"trainer": EAGER}), "clars_resnet_imagenet"

    def train(directory, count):
        tf_keras.utils.set_random_seed(1)
        assert runs.run_main(directory, experiment, runs.merged(base, steps(count))) == 0
        return runs.checkpoint(directory)

    whole = train(tmp_path / "whole", 6)
    assert runs.run_main(tmp_path / "whole", experiment, base, mode="eval") == 0
    train(tmp_path / "parts", 4)
    assert_same_state(train(tmp_path / "parts", 6), whole)


@pytest.mark.long
def test_killed_and_resumed_equals_undisturbed(records, tmp_path):
    """A process of its own, killed in mid-training with its checkpoints written in the background."""
    experiment = "conadv_resnet_imagenet"
    base = to_be_interrupted(records, conadv={"staleness": 2})
    start = runs.trainer_of(runs.params_of(experiment, base))[0].model
    weights = tf.train.Checkpoint(model=start).write(str(tmp_path / "start"))
    base = runs.merged(base, {"task": {"init_checkpoint": weights}})

    killed = tmp_path / "killed"
    flags = {"experiment": experiment, "mode": "train", "model_dir": killed}
    flags["params_override"] = json.dumps(runs.merged(base, steps(10_000)))
    command = [sys.executable, "-m", "tf_largebatch.model_garden.train", *(f"--{k}={v}" for k, v in flags.items())]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while steps_saved(killed) < 4 and process.poll() is None:
                time.sleep(0.05)
        finally:
            process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]

    count = steps_saved(killed) + 3
    whole = tmp_path / "whole"
    for directory in (killed, whole):
        assert runs.run_main(directory, experiment, runs.merged(base, steps(count))) == 0
    expected = runs.checkpoint(whole)
    assert expected["global_step/.ATTRIBUTES/VARIABLE_VALUE"] == count
    assert any("/snapshots/1/" in key for key in expected)  # the weights of past steps are part of it
    assert_same_state(runs.checkpoint(killed), expected)


@pytest.mark.long
def test_the_documented_export(records, tmp_path):
    experiment = "clars_resnet_imagenet"
    assert runs.run_main(tmp_path, experiment, runs.merged(runs.tiny(records), runs.TINY)) == 0
    (block,) = re.findall(r"```python\n(.*?)```", (CONFIGS.parent / "docs" / "model_garden.md").read_text(), re.DOTALL)
    exec(block.replace("/tmp/cifar", str(tmp_path)).replace("clars_resnet_cifar10", experiment), {})
    served = tf.saved_model.load(str(tmp_path / "exported")).signatures["serving_default"]
    assert served(tf.zeros([2, 32, 32, 3], tf.uint8))["logits"].shape == (2, 10)


def steps_saved(directory):
    latest = tf.train.latest_checkpoint(str(directory))
    return 0 if latest is None else int(latest.rsplit("-", 1)[1])
