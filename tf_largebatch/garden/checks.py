"""What is wrong with a configuration, in one sentence that names the field, its value and the remedy."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Mapping
from typing import Any

from official.modeling import hyperparams, optimization

from tf_largebatch.core.attack import bounds


class ConfigurationError(ValueError):
    """A configuration that cannot be trained with, said in one sentence."""


NORM_MODES = ("exact", "sampled", "replica")


def refuse_unknown_fields(config: hyperparams.Config, given: Any, path: str = "") -> None:
    """Raises for a key of `given`, at any depth, that `config` has no field for.

    Args:
        config: the configuration to be overridden.
        given: a nested mapping or another configuration.
        path: where `config` stands in the experiment.

    Raises:
        KeyError: naming the whole path of the first unknown field and the nearest known ones.
    """
    given = given.as_dict() if isinstance(given, hyperparams.Config) else given
    if not isinstance(given, Mapping):
        return
    known = [key for key in vars(config) if key not in config.RESERVED_ATTR]
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3) or sorted(known)
            raise KeyError(f"{path}{key} is not a field of the experiment: did you mean {_either(near)}?")
        below = getattr(config, key)
        if isinstance(below, hyperparams.ParamsDict):
            refuse_unknown_fields(below, value, f"{path}{key}.")


def check_experiment(params: Any) -> None:
    """Raises for values that cannot be trained with.

    Args:
        params: the `ExperimentConfig`.

    Raises:
        ConfigurationError: naming the field.
    """
    _check_data(params.task)
    _check_recipe(params.recipe)
    _check_optimization(params.trainer.optimizer_config)
    _check_norms(params.task.gradient_norms)
    if params.task.conadv.enabled:
        _check_conadv(params.task)


def check_divides(field: str, batch_size: int, replicas: int) -> None:
    """Raises unless a global batch size is a multiple of the number of replicas.

    Raises:
        ConfigurationError: naming the two nearest multiples.
    """
    if batch_size % replicas:
        below = batch_size - batch_size % replicas
        nearest = f"{below} or {below + replicas}" if below else f"{replicas}"
        raise ConfigurationError(
            f"{field} must be a multiple of the {replicas} replicas that share a batch; received {batch_size}: "
            f"take {nearest}."
        )


def _check_data(task: Any) -> None:
    for name in ("train_data", "validation_data"):
        data, path = getattr(task, name), f"task.{name}"
        _require(
            _is_integer(data.global_batch_size, 1), f"{path}.global_batch_size", data.global_batch_size, "1 or more"
        )
        if not data.input_path and not data.tfds_name:
            raise ConfigurationError(
                f"{path}.input_path is empty: give a pattern of TFRecord files there, or a prepared data set's name as "
                f"{path}.tfds_name."
            )
    _require(task.model.num_classes >= 2, "task.model.num_classes", task.model.num_classes, "2 or more")
    size = task.model.input_size
    _require(
        len(size) == 3 and all(_is_integer(n, 1) for n in size), "task.model.input_size", size, "[height, width, 3]"
    )
    _require_one_of(task.model.backbone.type, task.model.backbone, "task.model.backbone.type")


def _check_recipe(recipe: Any) -> None:
    for field in ("train_examples", "validation_examples", "base_batch_size"):
        _require(_is_integer(getattr(recipe, field), 1), f"recipe.{field}", getattr(recipe, field), "1 or more")
    for field in ("epochs", "base_learning_rate"):
        _require(
            _is_number(getattr(recipe, field)) and getattr(recipe, field) > 0,
            f"recipe.{field}",
            getattr(recipe, field),
            "above 0",
        )
    warmup = recipe.warmup_epochs
    _require(
        warmup is None or (_is_number(warmup) and 0 <= warmup < recipe.epochs),
        "recipe.warmup_epochs",
        warmup,
        f"null, or 0 or more and below the {recipe.epochs:g} epochs",
    )
    _require(recipe.table in (None, "conadv"), "recipe.table", recipe.table, "null or conadv")


def _check_optimization(config: Any) -> None:
    path = "trainer.optimizer_config"
    for part in ("optimizer", "learning_rate"):
        _require_one_of(getattr(config, part).type, getattr(config, part), f"{path}.{part}.type")
    if config.warmup.type is not None:
        _require_one_of(config.warmup.type, config.warmup, f"{path}.warmup.type")
    try:
        optimization.OptimizerFactory(config).build_optimizer(0.1)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}.optimizer.{config.optimizer.type}: {error}") from error


def _check_norms(norms: Any) -> None:
    path = "task.gradient_norms"
    _require(norms.mode in NORM_MODES, f"{path}.mode", norms.mode, f"one of {', '.join(NORM_MODES)}")
    if norms.mode == "sampled":
        _require(
            _is_integer(norms.norm_examples, 1),
            f"{path}.norm_examples",
            norms.norm_examples,
            "1 or more with mode=sampled",
        )
    else:
        _require(
            norms.norm_examples is None,
            f"{path}.norm_examples",
            norms.norm_examples,
            f"null unless mode is sampled (it is {norms.mode})",
        )


def _check_conadv(task: Any) -> None:
    conadv, path = task.conadv, "task.conadv"
    for field in ("epsilon", "adversarial_weight"):
        value = getattr(conadv, field)
        _require(_is_number(value) and value >= 0, f"{path}.{field}", value, "0 or more")
    _require(
        conadv.step_size is None or (_is_number(conadv.step_size) and conadv.step_size > 0),
        f"{path}.step_size",
        conadv.step_size,
        "null or above 0",
    )
    _require(_is_integer(conadv.num_steps, 1), f"{path}.num_steps", conadv.num_steps, "an integer of 1 or more")
    _require(_is_integer(conadv.staleness, 0), f"{path}.staleness", conadv.staleness, "an integer of 0 or more")
    _require(
        _is_number(conadv.random_start) and 0 <= conadv.random_start <= 1,
        f"{path}.random_start",
        conadv.random_start,
        "in [0, 1]",
    )
    _require(conadv.norm in ("linf", "l2"), f"{path}.norm", conadv.norm, "linf or l2")
    _require(conadv.attack in ("pgd", "noise"), f"{path}.attack", conadv.attack, "pgd or noise")
    if conadv.augment is not None:
        _require(
            conadv.augment.type in ("autoaug", "randaug"),
            f"{path}.augment.type",
            conadv.augment.type,
            "autoaug or randaug",
        )
    if conadv.value_range is not None:
        count = 2 * task.model.input_size[2]
        _require(
            len(conadv.value_range) == count,
            f"{path}.value_range",
            conadv.value_range,
            f"{count} numbers, lower and upper of each channel",
        )
        try:
            bounds([conadv.value_range[i : i + 2] for i in range(0, count, 2)])
        except ValueError as error:
            raise ConfigurationError(f"{path}.value_range: {error}") from error
    data = task.train_data
    for field in ("mixup_and_cutmix", "is_multilabel"):
        _require(
            not getattr(data, field),
            f"task.train_data.{field}",
            getattr(data, field),
            "off with task.conadv, whose attack needs one class an image",
        )
    _require(
        data.drop_remainder,
        "task.train_data.drop_remainder",
        data.drop_remainder,
        "true with task.conadv, which keeps a whole batch from one step to the next",
    )
    if conadv.augment is not None:
        for field in ("aug_type", "random_erasing", "three_augment"):
            _require(
                not getattr(data, field),
                f"task.train_data.{field}",
                getattr(data, field),
                "off with task.conadv.augment: the first stream is the clean view",
            )


def _require(condition: bool, field: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigurationError(f"{field} must be {allowed}; received {value!r}.")


def _require_one_of(chosen: Any, config: hyperparams.OneOfConfig, field: str) -> None:
    known = sorted(key for key in vars(config) if key not in (*config.RESERVED_ATTR, "type"))
    if chosen not in known:
        near = difflib.get_close_matches(str(chosen), known, n=3)
        hint = f" Did you mean {_either(near)}?" if near else ""
        raise ConfigurationError(f"{field} must be one of {', '.join(known)}; received {chosen!r}.{hint}")


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
