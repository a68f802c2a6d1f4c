"""Runs of the real command line and of Model Garden's driver inside the test process."""

from __future__ import annotations

import json

import gin
import tensorflow as tf
import tf_keras
from absl import flags
from absl.testing import flagsaver
from official.common import flags as tfm_flags
from official.core import exp_factory, task_factory, train_lib, train_utils

from tf_largebatch.model_garden import train

if "experiment" not in flags.FLAGS:
    tfm_flags.define_flags()
if not flags.FLAGS.is_parsed():
    flags.FLAGS(["train"])


def tiny(records, batch_size=8, **task):
    """Overrides that make any ImageNet experiment run in seconds: 32 px, few steps, the same batch every step."""
    data = {"shuffle_buffer_size": 1, "aug_crop": False, "aug_rand_hflip": False, "global_batch_size": batch_size}
    return {
        "task": {
            "model": {"num_classes": 10, "input_size": [32, 32, 3]},
            "train_data": {"input_path": records, **data},
            "validation_data": {"input_path": records, **data},
            **task,
        },
        "trainer": {
            "train_steps": 1,
            "steps_per_loop": 1,
            "summary_interval": 100,
            "checkpoint_interval": 100,
            "validation_interval": 1,
            "validation_steps": 1,
        },
        "runtime": {"distribution_strategy": "one_device", "num_gpus": 0},
    }


def merged(*overrides):
    """Nested mappings, later ones over earlier ones."""
    result = {}
    for override in overrides:
        for key, value in override.items():
            result[key] = merged(result.get(key) or {}, value) if isinstance(value, dict) else value
    return result


# The smallest network with batch norms: three convolutions.
TINY = {"type": "densenet", "densenet": {"block_repeats": [1], "growth_rate": 4}}
TINY = {"task": {"model": {"backbone": TINY}}}
RESNET = {"task": {"model": {"backbone": {"resnet": {"model_id": 10, "depth_multiplier": 0.125}}}}}


def run_main(model_dir, experiment, override, config_file=(), mode="train"):
    """The command line's status; `override` is a nested mapping or the flag's text."""
    gin.clear_config()  # Model Garden finalises it in each run
    with flagsaver.flagsaver(
        experiment=experiment,
        mode=mode,
        model_dir=str(model_dir),
        config_file=[str(path) for path in config_file],
        params_override=override if isinstance(override, str) else json.dumps(override),
        enable_async_checkpointing=False,
    ):
        return train.main(["train"])


def params_of(experiment, *overrides):
    """The resolved configuration."""
    params = exp_factory.get_exp_config(experiment)
    for override in overrides:
        params.override(override)
    params.validate()
    return params


def run(params, model_dir, strategy=None, mode="train", seed=0):
    """Model Garden's driver without the command line; returns the trained model."""
    tf_keras.utils.set_random_seed(seed)
    strategy = strategy or tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        task = task_factory.get_task(params.task, logging_dir=str(model_dir))
    model, logs = train_lib.run_experiment(strategy, task, mode, params, str(model_dir), save_summary=False)
    return model, logs


def trainer_of(params, strategy=None, seed=0):
    """Model Garden's trainer and the task, without a loop around them."""
    tf_keras.utils.set_random_seed(seed)
    strategy = strategy or tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        task = task_factory.get_task(params.task)
        return train_utils.create_trainer(params, task, train=True, evaluate=False), task


def checkpoint(model_dir):
    """Everything in the newest checkpoint of a directory, by key."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir)))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if not key.startswith(("_CHECKPOINTABLE", "save_counter"))
    }
