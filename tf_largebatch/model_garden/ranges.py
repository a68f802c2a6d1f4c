"""What numbers and choices of a configuration may be, field by field."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from tf_largebatch.model_garden.refusals import require

# Bounds of numbers, by field. The types have been checked; null fields are derived or mean that there is none.
_AT_LEAST = {
    1: """
        trainer.train_steps trainer.steps_per_loop trainer.summary_interval trainer.checkpoint_interval
        trainer.validation_interval trainer.max_to_keep task.evaluation.top_k recipe.train_examples
        recipe.validation_examples recipe.base_batch_size runtime.num_packs
        DATA.global_batch_size DATA.shuffle_buffer_size DATA.cycle_length DATA.block_length DATA.repeated_augment
    """,
    0: """
        trainer.continuous_eval_timeout runtime.num_gpus runtime.per_gpu_thread_count task.losses.l2_weight_decay
        task.losses.loss_weight DATA.color_jitter
    """,
}
_ABOVE_0 = "recipe.epochs recipe.base_learning_rate task.model.norm_activation.norm_epsilon"
_PROBABILITIES = "task.losses.label_smoothing task.model.dropout_rate"  # 1 would leave nothing
_FRACTIONS = "task.model.norm_activation.norm_momentum trainer.optimizer_config.ema.average_decay"
_CHOICES = {
    "runtime.distribution_strategy": (
        "mirrored",
        "one_device",
        "multi_worker_mirrored",
        "tpu",
        "parameter_server",
        "off",
    ),
    "runtime.mixed_precision_dtype": (None, "float32", "bfloat16", "float16"),
    "trainer.best_checkpoint_metric_comp": ("higher", "lower"),
    "task.init_checkpoint_modules": ("all", "backbone"),
    "DATA.dtype": ("float32", "bfloat16", "float16"),
    "DATA.file_type": ("tfrecord", "tfrecord_compressed"),
}
_DATA = ("task.train_data", "task.validation_data")


def check_ranges(params: Any) -> None:
    """Raises for a number outside its range or a choice that does not exist.

    Args:
        params: The `ExperimentConfig`, whose types have been checked.

    Raises:
        ConfigurationError: If there is one. The message names the field.
    """
    for least, fields in _AT_LEAST.items():
        _check_each(params, fields, functools.partial(operator.le, least), f"{least} or more")
    _check_each(params, _ABOVE_0, lambda value: value > 0, "above 0")
    _check_each(params, _PROBABILITIES, lambda value: 0 <= value < 1, "at least 0 and below 1")
    _check_each(params, _FRACTIONS, lambda value: 0 <= value <= 1, "from 0 to 1")
    for fields, choices in _CHOICES.items():
        known = ", ".join("null" if choice is None else choice for choice in choices)
        _check_each(params, fields, choices.__contains__, f"one of {known}")
    steps = params.trainer.validation_steps
    rule = "1 or more, or -1 for the whole data set"
    require(steps is None or steps == -1 or steps >= 1, "trainer.validation_steps", steps, rule)


def _check_each(params: Any, fields: str, allowed: Callable[[Any], bool], rule: str) -> None:
    for field in fields.split():
        for name in [field.replace("DATA", data) for data in _DATA] if "DATA" in field else [field]:
            value = params
            for key in name.split("."):
                value = None if value is None else getattr(value, key)
            require(value is None or allowed(value), name, value, rule)
