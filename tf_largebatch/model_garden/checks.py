"""What is wrong with a configuration, found before any work is done."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from official.modeling import optimization

from tf_largebatch.conadv.arguments import check_arguments
from tf_largebatch.core.pgd import bounds
from tf_largebatch.model_garden.adversary import value_range
from tf_largebatch.model_garden.field_types import check_types
from tf_largebatch.model_garden.ranges import check_ranges
from tf_largebatch.model_garden.refusals import ConfigurationError, is_integer, require, require_one_of
from tf_largebatch.model_garden.schedules import check_schedules

NORM_MODES = ("exact", "sampled", "replica")
# Arguments of ConAdvModel that are no fields of `task.conadv` or mean something else there.
_ELSEWHERE = {"augment": None, "num_classes": None}


def check_experiment(params: Any) -> None:
    """Raises for values that cannot be trained with.

    Args:
        params: The `ExperimentConfig`.

    Raises:
        ConfigurationError: If there is one. The message names the field.
    """
    check_types(params)
    check_ranges(params)
    _check_data(params.task)
    _check_model(params.task.model)
    _check_recipe(params.recipe)
    _check_optimization(params.trainer.optimizer_config)
    _check_moving_average(params)
    _check_norms(params.task.gradient_norms)
    _check_micro_batches(params.task)
    if params.task.conadv.enabled:
        _check_conadv(params.task)


def check_derived(params: Any) -> None:
    """Raises for values that cannot be trained with once all null fields have been derived.

    Args:
        params: The `ExperimentConfig`.

    Raises:
        ConfigurationError: If there is one. The message names the field.
    """
    check_schedules(params.trainer.optimizer_config)
    trainer = params.trainer
    require(
        trainer.summary_interval % trainer.steps_per_loop == 0,
        "trainer.summary_interval",
        trainer.summary_interval,
        f"a multiple of the {trainer.steps_per_loop} steps of trainer.steps_per_loop",
    )


def check_divides(field: str, batch_size: int, replicas: int) -> None:
    """Raises unless a global batch size is a multiple of the number of replicas.

    Raises:
        ConfigurationError: If it is not. The message names the two nearest multiples.
    """
    below = batch_size - batch_size % replicas
    nearest = f"{below} or {below + replicas}" if below else f"{replicas}"
    rule = f"a multiple of the {replicas} replicas that share a batch"
    require(batch_size % replicas == 0, field, batch_size, rule, f"take {nearest}")


_DATA = ("task.train_data", "task.validation_data")


def _check_data(task: Any) -> None:
    for path in _DATA:
        data = getattr(task, path.removeprefix("task."))
        remedy = f"give a pattern of TFRecord files there, or a prepared data set's name as {path}.tfds_name"
        require(bool(data.input_path or data.tfds_name), f"{path}.input_path", data.input_path, "given", remedy)
        if data.tfds_name:
            remedy = f"give one of the two, for example with {path}.input_path=''"
            rule = f"empty with {path}.tfds_name={data.tfds_name!r}"
            require(not data.input_path, f"{path}.input_path", data.input_path, rule, remedy)
            require(bool(data.tfds_split), f"{path}.tfds_split", data.tfds_split, "given, for example train")
    require(task.train_data.is_training, "task.train_data.is_training", False, "true")


def _check_model(model: Any) -> None:
    require(model.num_classes >= 2, "task.model.num_classes", model.num_classes, "2 or more")
    size = model.input_size
    require(
        len(size) == 3 and all(is_integer(n, 1) for n in size) and size[2] == 3,
        "task.model.input_size",
        size,
        "[height, width, 3]",
    )
    require_one_of(model.backbone.type, model.backbone, "task.model.backbone.type")


def _check_recipe(recipe: Any) -> None:
    warmup = recipe.warmup_epochs
    rule = f"null, or 0 or more and below the {recipe.epochs:g} epochs"
    require(warmup is None or 0 <= warmup < recipe.epochs, "recipe.warmup_epochs", warmup, rule)
    require(recipe.table in (None, "conadv"), "recipe.table", recipe.table, "null or conadv")


def _check_optimization(config: Any) -> None:
    path = "trainer.optimizer_config"
    for part in ("optimizer", "learning_rate"):
        require_one_of(getattr(config, part).type, getattr(config, part), f"{path}.{part}.type")
    if config.warmup.type is not None:
        require_one_of(config.warmup.type, config.warmup, f"{path}.warmup.type")
    try:
        optimization.OptimizerFactory(config).build_optimizer(0.1)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}.optimizer.{config.optimizer.type}: {error}") from error


def _check_moving_average(params: Any) -> None:
    """Model Garden looks for its moving average outside of the loss scaling that float16 wraps around it."""
    dtype, ema = params.runtime.mixed_precision_dtype, params.trainer.optimizer_config.ema
    if dtype == "float16" and ema is not None:
        rule = "null with runtime.mixed_precision_dtype='float16', whose loss scaling hides the moving average"
        remedy = "take bfloat16 or float32, or leave out ema"
        require(False, "trainer.optimizer_config.ema", ema.as_dict(), rule, remedy)


def _check_micro_batches(task: Any) -> None:
    size, path = task.micro_batch_size, "task.micro_batch_size"
    require(size is None or is_integer(size, 1), path, size, "null or 1 or more")
    if size is None:
        return
    batch = task.train_data.global_batch_size
    require(batch % size == 0, path, size, f"a divisor of the global batch of {batch}")
    require(
        not task.model.norm_activation.use_sync_bn,
        "task.model.norm_activation.use_sync_bn",
        True,
        f"false with {path}, since each replica goes through its micro-batches by itself",
    )
    require(
        task.train_data.drop_remainder,
        "task.train_data.drop_remainder",
        task.train_data.drop_remainder,
        f"true with {path}, which needs to know the size of the batch",
    )


def _check_norms(norms: Any) -> None:
    path = "task.gradient_norms"
    require(norms.mode in NORM_MODES, f"{path}.mode", norms.mode, f"one of {', '.join(NORM_MODES)}")
    if norms.mode == "sampled":
        require(
            is_integer(norms.norm_examples, 1),
            f"{path}.norm_examples",
            norms.norm_examples,
            "1 or more with mode=sampled",
        )
    else:
        require(
            norms.norm_examples is None,
            f"{path}.norm_examples",
            norms.norm_examples,
            f"null unless mode is sampled (it is {norms.mode})",
        )


def _check_conadv(task: Any) -> None:
    conadv, path = task.conadv, "task.conadv"
    arguments = inspect.signature(check_arguments).parameters.keys() - _ELSEWHERE.keys()
    try:
        check_arguments(**{name: getattr(conadv, name) for name in arguments}, **_ELSEWHERE)
    except ValueError as error:
        raise ConfigurationError(f"{path}.{error}") from error
    if conadv.augment is not None:
        require(
            conadv.augment.type in ("autoaug", "randaug"),
            f"{path}.augment.type",
            conadv.augment.type,
            "autoaug or randaug",
        )
    if conadv.value_range is not None:
        count = 2 * task.model.input_size[2]
        require(
            len(conadv.value_range) == count,
            f"{path}.value_range",
            conadv.value_range,
            f"{count} numbers, lower and upper of each channel",
        )
        try:
            lower, upper = bounds(value_range(conadv))
        except ValueError as error:
            raise ConfigurationError(f"{path}.value_range: {error}") from error
        least, most = bounds(value_range(conadv.replace(value_range=None)))
        contains = all(lower <= np.asarray(least) + 1e-3) and all(upper >= np.asarray(most) - 1e-3)
        rule = "a range that contains the images, which Model Garden standardizes"
        shown = ", ".join(f"{value:.3f}" for pair in zip(least, most, strict=True) for value in pair)
        require(contains, f"{path}.value_range", conadv.value_range, rule, f"they lie in [{shown}]; null means that")
    data = task.train_data
    for field in ("mixup_and_cutmix", "is_multilabel"):
        require(
            not getattr(data, field),
            f"task.train_data.{field}",
            getattr(data, field),
            "off with task.conadv, whose attack needs one class an image",
        )
    require(
        data.drop_remainder,
        "task.train_data.drop_remainder",
        data.drop_remainder,
        "true with task.conadv, which keeps a whole batch from one step to the next",
    )
    if conadv.augment is not None:
        for field in ("aug_type", "random_erasing", "three_augment"):
            require(
                not getattr(data, field),
                f"task.train_data.{field}",
                getattr(data, field),
                "off with task.conadv.augment: the first stream is the clean view",
            )
