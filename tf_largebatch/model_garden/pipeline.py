"""Training data with the batch of the next step, and in several views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from official.vision.ops import augment


def with_next_batch(dataset: tf.data.Dataset, replicas: int = 1) -> tf.data.Dataset:
    """Pairs each batch with the one its replica gets in the next step.

    A strategy gives consecutive batches of a worker's data set to the worker's replicas, so a replica's next batch
    comes `replicas` batches later. Each batch is read and augmented once.

    Args:
        dataset: Endless batches of static shape.
        replicas: Number of replicas that this data set feeds.

    Returns:
        A data set of pairs `(batch t, batch t + replicas)`.
    """
    nothing = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), dataset.element_spec)
    waiting = tuple(nothing for _ in range(replicas))

    def step(waiting: Any, batch: Any) -> tuple[Any, Any]:
        return (*waiting[1:], batch), (waiting[0], batch)

    return dataset.scan(waiting, step).skip(replicas).prefetch(tf.data.AUTOTUNE)


class Views:
    """An augmenter of Model Garden's kind that returns the image and augmented versions of it, [1 + views, H, W, C].

    In Model Garden's parser it makes several views of the same crop and flip, which are then standardized alike.

    Args:
        augmenters: Objects with `distort(image)`, such as Model Garden's AutoAugment.
    """

    def __init__(self, augmenters: Sequence[Any]) -> None:
        self._augmenters = tuple(augmenters)

    def distort(self, image: tf.Tensor) -> tf.Tensor:
        """Returns the views of one image, [H, W, C] with values in 0 to 255."""
        views = [image, *(augmenter.distort(image) for augmenter in self._augmenters)]
        return tf.stack([tf.cast(view, image.dtype) for view in views])


def augmenter_of(config: Any) -> Any:
    """Model Garden's augmenter for one of its `Augmentation` configs, of type autoaug or randaug."""
    arguments = config.get()
    if config.type == "autoaug":
        return augment.AutoAugment(
            augmentation_name=arguments.augmentation_name,
            cutout_const=arguments.cutout_const,
            translate_const=arguments.translate_const,
        )
    return augment.RandAugment(
        num_layers=arguments.num_layers,
        magnitude=arguments.magnitude,
        cutout_const=arguments.cutout_const,
        translate_const=arguments.translate_const,
        prob_to_apply=arguments.prob_to_apply,
        exclude_ops=arguments.exclude_ops,
    )
