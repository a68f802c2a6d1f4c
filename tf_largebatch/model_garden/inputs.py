"""The host's input pipeline with checks before it, and with look-ahead and views behind it."""

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
from tf_largebatch.model_garden.refusals import ConfigurationError


def build(
    task: Any,
    params: Any,
    context: tf.distribute.InputContext | None,
    host_inputs: Callable[[Any, Any], tf.data.Dataset],
    look_ahead: bool,
) -> tf.data.Dataset:
    """The data of the task, for training or validation.

    Args:
        task: the task's config.
        params: the data's config.
        context: which part of the data this pipeline reads, from the strategy.
        host_inputs: the host's `build_inputs`.
        look_ahead: whether training steps need the next step's batch.

    Returns:
        Per-replica batches `(images, labels)`, images [B, H, W, C] or with views [B, V, H, W, C]; with look-ahead
        pairs of them.

    Raises:
        ConfigurationError: if the data are not there, the batch does not divide among the replicas, or more of its
            images are to be measured than there are.
    """
    name = "train_data" if params.is_training else "validation_data"
    replicas = 1 if context is None else context.num_replicas_in_sync
    check_divides(f"task.{name}.global_batch_size", params.global_batch_size, replicas)
    _check_present(f"task.{name}", params)
    if not params.is_training:
        return host_inputs(params, context)
    _check_sample(task.gradient_norms, params.global_batch_size // replicas)
    _check_micro_batches(task.micro_batch_size, params.global_batch_size // replicas)
    if task.conadv.enabled and task.conadv.augment is not None:
        dataset = _with_views(task, params, context)
    else:
        dataset = host_inputs(params, context)
    if look_ahead:
        pipelines = 1 if context is None else context.num_input_pipelines
        dataset = pipeline.with_next_step(dataset, replicas // pipelines)
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
    if norms.norm_examples is not None and norms.norm_examples > batch_size:
        raise ConfigurationError(
            f"task.gradient_norms.norm_examples must be at most the {batch_size} images that a replica trains on; "
            f"received {norms.norm_examples}: lower it or take mode=exact."
        )


def _check_micro_batches(size: int | None, batch_size: int) -> None:
    if size is not None and batch_size % size:
        raise ConfigurationError(
            f"task.micro_batch_size must divide the {batch_size} images that a replica trains on; received {size}."
        )


def _check_present(path: str, params: Any) -> None:
    if params.tfds_name and isinstance(params.tfds_name, str):
        _check_prepared(path, params)
    for pattern in _patterns(params.input_path):
        try:
            found = bool(tf.io.gfile.glob(pattern))
        except tf.errors.OpError:
            found = False
        if not found:
            raise ConfigurationError(
                f"{path}.input_path must match files; {pattern!r} matches none: set it to your TFRecord files, for "
                f"example with --params_override={path}.input_path=/data/imagenet/train*."
            )


def _patterns(input_path: Any) -> list[str]:
    """The file patterns of the host's `input_path`: a string with commas or a list of such."""
    if isinstance(input_path, str):
        return [pattern.strip() for pattern in input_path.split(",") if pattern.strip()]
    if isinstance(input_path, list | tuple):
        return [pattern for entry in input_path for pattern in _patterns(entry)]
    return []


def _check_prepared(path: str, params: Any) -> None:
    """The host would download what is not there."""
    where = params.tfds_data_dir or tfds.core.constants.DATA_DIR
    try:
        prepared = tfds.builder(params.tfds_name, data_dir=params.tfds_data_dir or None).is_prepared()
    except tfds.core.DatasetNotFoundError:
        prepared = False
    if not prepared:
        raise ConfigurationError(
            f"{path}.tfds_name={params.tfds_name!r} is not prepared in {where}: name the directory with TFDS_DATA_DIR "
            f"or {path}.tfds_data_dir, or prepare it with `tfds build {params.tfds_name}`."
        )
