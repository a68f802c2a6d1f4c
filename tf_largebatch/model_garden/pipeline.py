"""Training data that come with the batch of the next step, and in several views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from official.vision.ops import augment


def with_next_batch(dataset: tf.data.Dataset, replicas: int = 1) -> tf.data.Dataset:
    """Pairs each batch with the one its replica gets in the next step.

    A strategy deals out consecutive batches of a worker's data set to the worker's replicas, so that a replica's next
    batch comes `replicas` batches later. Each batch is read and augmented once.

    Args:
        dataset: endless batches of static shape.
        replicas: replicas that this data set feeds.

    Returns:
        A data set of pairs `(batch t, batch t + replicas)`.
    """
    nothing = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), dataset.element_spec)
    waiting = tuple(nothing for _ in range(replicas))

    def step(waiting: Any, batch: Any) -> tuple[Any, Any]:
        return (*waiting[1:], batch), (waiting[0], batch)

    return dataset.scan(waiting, step).skip(replicas).prefetch(tf.data.AUTOTUNE)


class Views:
    """An augmenter in the host's sense that returns the image and augmented versions of it, [1 + views, H, W, C].

    Given to the host's parser it makes several views of the same crop and flip, which then are standardised alike.

    Args:
        augmenters: objects with `distort(image)`, such as the host's AutoAugment.
    """

    def __init__(self, augmenters: Sequence[Any]) -> None:
        self._augmenters = tuple(augmenters)

    def distort(self, image: tf.Tensor) -> tf.Tensor:
        """The views of one image, [H, W, C] with values in 0 to 255."""
        views = [image, *(augmenter.distort(image) for augmenter in self._augmenters)]
        return tf.stack([tf.cast(view, image.dtype) for view in views])


def augmenter_of(config: Any) -> Any:
    """The host's augmenter for one of its `Augmentation` configs, of type autoaug or randaug."""
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
