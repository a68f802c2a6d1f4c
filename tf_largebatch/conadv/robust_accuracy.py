"""How many images a classifier gets right after an attack on it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.conadv import images as image_checks
from tf_largebatch.conadv.arguments import check_arguments, plain_range
from tf_largebatch.conadv.attack import ImageAttack
from tf_largebatch.conadv.class_labels import are_sparse, classification_loss, to_classes
from tf_largebatch.training.step_seed import step_seed


def accuracy_under_attack(
    model: keras.Model,
    batches: Iterable[tuple[Any, Any]],
    loss: Any,
    epsilon: float = 4.0,
    value_range: Sequence[Any] = (0.0, 255.0),
    num_steps: int = 1,
    step_size: float | None = None,
    targeted: bool = False,
    random_start: float = 0.0,
    norm: str = "linf",
    seed: int = 0,
) -> float:
    """Share of the images that a classifier, as it is evaluated, gets right after an attack with its own gradients.

        x^ = projection of  x + step_size * sign(d loss(y, model(x)) / d x)  onto  |x^ - x| <= epsilon  and the range
        accuracy = mean over all images of [argmax model(x^) = y]

    With the defaults this is the fast gradient sign method. Layers run in inference mode; nothing is written. One
    step says little about stronger attacks.

    Args:
        model: one input, images [batch, height, width, channels]; one score per class, [batch, classes].
        batches: of images in `value_range` and their labels, integers or one-hot, such as a `tf.data.Dataset`.
        loss: classification loss that fits scores and labels, e.g.
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`.
        epsilon: radius of the ball, pixels of 255; 0 for accuracy on the images as they are.
        value_range: `(lower, upper)` of valid inputs, or one such pair for each channel.
        num_steps: number of gradient steps.
        step_size: length of a step, pixels of 255; None for epsilon / num_steps.
        targeted: whether to descend a random wrong class's loss instead of ascending the true one's.
        random_start: probability of a random point of the ball as starting point.
        norm: "linf" or "l2".
        seed: of targets and starts, with the number of the batch.

    Returns:
        Accuracy, 0 to 1.

    Raises:
        ValueError: if an argument is out of its range, inputs are no images, or there are none.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", arXiv 1412.6572; several
    steps: Madry et al., arXiv 1706.06083.

    Example:
        >>> import keras
        >>> import tensorflow as tf
        >>> net = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> batches = tf.data.Dataset.from_tensors((tf.zeros([8, 4, 4, 1]), tf.zeros([8], tf.int32)))
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> 0 <= accuracy_under_attack(net, batches, loss, epsilon=8.0, value_range=(0.0, 1.0)) <= 1
        True
    """
    check_arguments(
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        staleness=0,
        targeted=targeted,
        random_start=random_start,
        adversarial_weight=1.0,
        augment=None,
        num_classes=None,
        attack="pgd",
        norm=norm,
        seed=seed,
    )
    attack = ImageAttack(epsilon, plain_range(value_range), step_size, num_steps, targeted, random_start, norm=norm)
    loss = classification_loss(loss)
    hits = _hits_function(model, attack, loss, seed)
    right = total = 0
    for number, batch in enumerate(batches):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        image_checks.check_are_images(x)
        image_checks.check_channels(attack.value_range, x)
        right += int(hits(image_checks.as_floating(x), tf.convert_to_tensor(y), tf.constant(number)))
        total += int(x.shape[0])
    if not total:
        raise ValueError("batches must hold at least one image, got none: a generator that was used up?")
    return right / total


def _hits_function(model: keras.Model, attack: ImageAttack, loss: Any, seed: int) -> Any:
    """The number of images of a batch that the model gets right after the attack."""

    @tf.autograph.experimental.do_not_convert
    def hits(x: tf.Tensor, y: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        scores = functools.partial(model, training=False)
        num_classes = scores(x).shape[-1]
        are_sparse(y, num_classes)
        copies = attack.copies(x, y, scores, loss, num_classes, functools.partial(step_seed, seed, number))
        right = to_classes(y, num_classes) == tf.argmax(scores(copies), axis=-1, output_type=tf.int32)
        return tf.reduce_sum(tf.cast(right, tf.int32))

    return tf.function(hits, reduce_retracing=True)
