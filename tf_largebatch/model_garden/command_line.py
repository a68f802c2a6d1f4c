"""What is wrong with the flags, the files they name and the model's directory, found before training."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import yaml
from official.modeling.hyperparams import params_dict

from tf_largebatch import check
from tf_largebatch.model_garden.refusals import ConfigurationError, one_line, require

MODES = ("train", "eval", "train_and_eval", "continuous_eval", "train_and_post_eval")


def check_mode(mode: str) -> None:
    """Raises a `ConfigurationError` for a mode that Model Garden's flag knows and its driver does not."""
    require(mode in MODES, "--mode", mode, f"one of {', '.join(MODES)}")


def check_devices(runtime: Any) -> None:
    """Raises a `ConfigurationError` for GPUs that are not there."""
    if not runtime.num_gpus:
        return
    found = len(tf.config.list_physical_devices("GPU"))
    rule = f"at most {found}, the number of GPUs that TensorFlow finds"
    require(runtime.num_gpus <= found, "runtime.num_gpus", runtime.num_gpus, rule)
    if runtime.distribution_strategy in ("one_device", "off"):
        rule = f"0 or 1 with runtime.distribution_strategy={runtime.distribution_strategy}"
        require(runtime.num_gpus <= 1, "runtime.num_gpus", runtime.num_gpus, rule)


def check_config_file(file: str) -> None:
    """Raises unless a file holds a mapping in YAML.

    Args:
        file: One of `--config_file`.

    Raises:
        ConfigurationError: If it does not. The message says why.
    """
    _check_mapping("--config_file", file, _read("--config_file", file))


def check_override(override: str | None) -> None:
    """Raises unless an override is `field=value,...`, a mapping in YAML or JSON, or a file that holds one.

    Args:
        override: The flag `--params_override`.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if not override:
        return
    flag = "--params_override"
    try:
        text = params_dict.nested_csv_str_to_json_str(override)
    except ValueError:
        text = override
    content = _parsed(flag, override, text)
    if isinstance(content, str) and not tf.io.gfile.exists(override):
        rule = "field=value pairs with commas between them, a mapping in YAML or JSON, or an existing file"
        require(False, flag, override, rule)
    _check_mapping(flag, override, _read(flag, override) if isinstance(content, str) else content)


def check_model_dir(directory: str, mode: str, init_checkpoint: str | None) -> None:
    """Raises if checkpoints cannot be written to or found in a directory.

    Args:
        directory: The flag `--model_dir`.
        mode: The flag `--mode`.
        init_checkpoint: The configuration's `task.init_checkpoint`.

    Raises:
        ConfigurationError: If the directory is a file, if it holds checkpoints that its index does not name, or if
            there is nothing to evaluate.
    """
    if "train" in mode:
        try:
            tf.io.gfile.makedirs(directory)
        except (OSError, tf.errors.OpError) as error:
            rule = "a directory that can be written to"
            raise ConfigurationError(check.message("--model_dir", rule, directory, one_line(error))) from error
    latest = _latest(directory)
    found = sorted(tf.io.gfile.glob(f"{directory}/ckpt-*.index"), key=_step)
    if latest is None and found:
        newest = found[-1].removesuffix(".index")
        rule = "a directory whose file `checkpoint` names one of its checkpoints"
        remedy = f'write model_checkpoint_path: "{newest.rsplit("/", 1)[-1]}" into it, or take another directory'
        require(False, "--model_dir", directory, rule, remedy)
    if mode == "eval" and not init_checkpoint:
        require(latest is not None, "--model_dir", directory, "a directory with a checkpoint in --mode=eval")
    if init_checkpoint:
        _check_init_checkpoint(init_checkpoint)


def is_missing(directory: str) -> bool:
    """Returns whether there is no such directory, as far as that can be told."""
    try:
        return not tf.io.gfile.exists(directory)
    except (OSError, tf.errors.OpError):
        return False


def remove_unused(directory: str) -> None:
    """Removes a directory that holds nothing but a run's configuration."""
    with contextlib.suppress(OSError, tf.errors.OpError):
        if set(tf.io.gfile.listdir(directory)) <= {"params.yaml"}:
            tf.io.gfile.rmtree(directory)


def explained(error: Exception, directory: str) -> str | None:
    """Returns one sentence for an error that ended a run; None for one that only a traceback explains.

    Args:
        error: What was raised.
        directory: The flag `--model_dir`, whose newest checkpoint may be the cause.
    """
    if isinstance(error, ConfigurationError):
        return one_line(error)
    latest = _latest(directory)
    damage = None if latest is None else _damage(latest)
    if damage:
        older = [path.removesuffix(".index") for path in tf.io.gfile.glob(f"{directory}/ckpt-*.index")]
        older = sorted((path for path in older if path != latest), key=_step)
        remedy = "train in another --model_dir"
        if older:
            name = older[-1].rsplit("/", 1)[-1]
            remedy = (
                f'write model_checkpoint_path: "{name}" into {directory}/checkpoint to continue from the one before'
            )
        return f"the newest checkpoint, {latest}, is damaged ({damage}): {remedy}."
    text = one_line(error)
    if "incompatible tensor" in text:
        return f"a checkpoint belongs to another network ({text}): train in another --model_dir or restore the network."
    if text.startswith("The loss value is"):
        return f"training diverged ({text}): lower the learning rate or eta, or set max_rate."
    return text if isinstance(error, OSError | tf.errors.OpError) else None


def _check_init_checkpoint(path: str) -> None:
    name = "task.init_checkpoint"
    checkpoint = (_latest(path) or "") if tf.io.gfile.isdir(path) else path
    exists = bool(checkpoint) and tf.io.gfile.exists(f"{checkpoint}.index")
    require(exists, name, path, "a checkpoint or a directory that holds one")
    damage = _damage(checkpoint)
    require(damage is None, name, path, "a checkpoint that can be read", damage or "")


def _latest(directory: str) -> str | None:
    """Returns the newest checkpoint; None if there is none or if the file that names it is damaged."""
    try:
        return tf.train.latest_checkpoint(directory)
    except ValueError:
        return None


def _damage(checkpoint: str) -> str | None:
    """Why a checkpoint cannot be read, or None if it can."""
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        for key in reader.get_variable_to_shape_map():
            reader.get_tensor(key)
    except (IndexError, OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        return one_line(error).rstrip(".")
    return None


def _step(path: str) -> int:
    found = re.search(r"-(\d+)(?:\.index)?$", path)
    return int(found[1]) if found else -1


def _read(flag: str, file: str) -> Any:
    try:
        with tf.io.gfile.GFile(file) as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError, tf.errors.OpError) as error:
        raise ConfigurationError(check.message(flag, "a YAML file that can be read", file, one_line(error))) from error
    return _parsed(flag, file, text)


def _parsed(flag: str, value: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        reason = f"{getattr(error, 'problem', None) or 'it cannot be parsed'}{where}"
        raise ConfigurationError(check.message(flag, "correct YAML", value, reason)) from error


def _check_mapping(flag: str, value: str, content: Any) -> None:
    rule = "a mapping of fields, such as `task: {...}`"
    found = "it is empty" if content is None else f"it holds {type(content).__name__}"
    require(isinstance(content, Mapping), flag, value, rule, found)
