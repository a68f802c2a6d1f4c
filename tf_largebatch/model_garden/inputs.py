"""Model Garden's input pipeline with checks before it, and with the next batch and views behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from official.common import dataset_fn
from official.core import input_reader
from official.vision.dataloaders import classification_input, tfds_factory

from tf_largebatch.model_garden import pipeline
from tf_largebatch.model_garden.checks import check_divides
from tf_largebatch.model_garden.labels import check_prepared_labels, check_recorded_labels, with_checked_labels
from tf_largebatch.model_garden.refusals import ConfigurationError, one_line, require


def build(
    task: Any,
    params: Any,
    context: tf.distribute.InputContext | None,
    build_inputs: Callable[[Any, Any], tf.data.Dataset],
    with_next: bool,
) -> tf.data.Dataset:
    """Returns the data of the task, for training or validation.

    Args:
        task: The task's config.
        params: The data's config.
        context: Which part of the data this pipeline reads, from the strategy.
        build_inputs: Model Garden's `build_inputs`.
        with_next: Whether training steps need the next step's batch.

    Returns:
        Per-replica batches `(images, labels)`, images [B, H, W, C] or with views [B, V, H, W, C]; pairs of them where
        training steps need the next step's batch.

    Raises:
        ConfigurationError: If the data are not there, have more classes than the model, or the batch does not divide
            among the replicas, or more of its images are to be measured than there are.
    """
    name = "train_data" if params.is_training else "validation_data"
    field = f"task.{name}"
    replicas = 1 if context is None else context.num_replicas_in_sync
    check_divides(f"{field}.global_batch_size", params.global_batch_size, replicas)
    _check_present(field, params, task)
    if params.is_training:
        _check_sample(task.gradient_norms, params.global_batch_size // replicas)
        _check_micro_batches(task.micro_batch_size, params.global_batch_size // replicas)
    views = params.is_training and task.conadv.enabled and task.conadv.augment is not None
    try:
        dataset = _with_views(task, params, context) if views else build_inputs(params, context)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{field} cannot be read: {one_line(error)}") from error
    dataset = with_checked_labels(dataset, task.model.num_classes)
    if params.is_training and with_next:
        pipelines = 1 if context is None else context.num_input_pipelines
        dataset = pipeline.with_next_batch(dataset, replicas // pipelines)
    return dataset


def _with_views(task: Any, params: Any, context: Any) -> tf.data.Dataset:
    """Images [B, 2, H, W, C]: the clean view and the augmented one of `task.conadv.augment`."""
    keys = {"image_field_key": params.image_field_key, "label_field_key": params.label_field_key}
    if params.tfds_name:
        decoder = tfds_factory.get_classification_decoder(params.tfds_name)
    else:
        decoder = classification_input.Decoder(**keys)
    parser = classification_input.Parser(
        output_size=task.model.input_size[:2],
        num_classes=task.model.num_classes,
        decode_jpeg_only=params.decode_jpeg_only,
        aug_rand_hflip=params.aug_rand_hflip,
        aug_crop=params.aug_crop,
        color_jitter=params.color_jitter,
        dtype=params.dtype,
        center_crop_fraction=params.center_crop_fraction,
        tf_resize_method=params.tf_resize_method,
        **keys,
    )
    parser._augmenter = pipeline.Views([pipeline.augmenter_of(task.conadv.augment)])
    reader = input_reader.InputReader(
        params,
        dataset_fn=dataset_fn.pick_dataset_fn(params.file_type),
        decoder_fn=decoder.decode,
        parser_fn=parser.parse_fn(params.is_training),
    )
    return reader.read(input_context=context)


def _check_sample(norms: Any, batch_size: int) -> None:
    examples, rule = norms.norm_examples, f"at most the {batch_size} images that a replica trains on"
    fits = examples is None or examples <= batch_size
    require(fits, "task.gradient_norms.norm_examples", examples, rule, "lower it or take mode=exact")


def _check_micro_batches(size: int | None, batch_size: int) -> None:
    rule = f"a divisor of the {batch_size} images that a replica trains on"
    require(size is None or batch_size % size == 0, "task.micro_batch_size", size, rule)


def _check_present(field: str, params: Any, task: Any) -> None:
    classes = task.model.num_classes
    if params.tfds_name and isinstance(params.tfds_name, str):
        check_prepared_labels(_prepared(field, params), classes)
    first = None
    for pattern in _patterns(params.input_path):
        try:
            found = sorted(tf.io.gfile.glob(pattern))
        except (OSError, tf.errors.OpError):
            found = []
        remedy = f"name your TFRecord files, for example --params_override={field}.input_path=/data/imagenet/train*"
        require(bool(found), f"{field}.input_path", pattern, "a pattern that matches files; it matches none", remedy)
        first = first or found[0]
    if first is not None:
        # Model Garden reads the labels of both data sets by the training data's key.
        check_recorded_labels(field, params.file_type, task.train_data.label_field_key, first, classes)


def _patterns(input_path: Any) -> list[str]:
    """Returns the file patterns of Model Garden's `input_path`: a string with commas or a list of such."""
    if isinstance(input_path, str):
        return [pattern.strip() for pattern in input_path.split(",") if pattern.strip()]
    if isinstance(input_path, list | tuple):
        return [pattern for entry in input_path for pattern in _patterns(entry)]
    return []


def _prepared(field: str, params: Any) -> Any:
    """Returns the builder of a prepared data set. Model Garden would download what is not there."""
    where = params.tfds_data_dir or tfds.core.constants.DATA_DIR
    try:
        builder = tfds.builder(params.tfds_name, data_dir=params.tfds_data_dir or None)
        prepared = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, ValueError):
        prepared = False
    rule = f"a data set that is prepared in {where}"
    remedy = f"name the directory with TFDS_DATA_DIR or {field}.tfds_data_dir, or run `tfds build {params.tfds_name}`"
    require(prepared, f"{field}.tfds_name", params.tfds_name, rule, remedy)
    split, known = params.tfds_split, sorted(builder.info.splits)
    rule = f"one of {', '.join(known)} or a part of one"
    require(any(split.startswith(name) for name in known), f"{field}.tfds_split", split, rule)
    return builder
