"""The accuracy of a classifier under attack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.conadv.attacked_loss import attacked_loss, check_loss
from tf_largebatch.conadv.model_attacks import ModelAttacks


def accuracy_under_attack(
    model: keras.Model,
    batches: Iterable[tuple[Any, Any]],
    loss: Any,
    epsilon: float = 4.0,
    value_range: Sequence[Any] | None = None,
    num_steps: int = 1,
    step_size: float | None = None,
    targeted: bool = False,
    random_start: float = 0.0,
    norm: str = "linf",
    seed: int = 0,
) -> float:
    """Returns the share of the images that a classifier gets right after an attack with its own gradients.

        x^ = projection of  x + step_size * sign(d loss(y, model(x)) / d x)  onto  |x^ - x| <= epsilon  and the range
        accuracy = mean over all images of [argmax model(x^) = y]          for one score: [model(x^) > threshold] = y

    With the defaults this is the fast gradient sign method. Layers run in inference mode, and no variable is written.
    One step says little about stronger attacks. The gradient's direction is computed so that it does not vanish for
    confident classifiers, whatever the scale of their logits; see `tf_largebatch.conadv.objective`.

    Args:
        model: A classifier with one input, images [batch, height, width, channels], and one score for each class,
            [batch, classes], or one score for yes or no, [batch, 1]: logits or probabilities.
        batches: Batches of images in `value_range` and their labels, such as a `tf.data.Dataset` or a list of pairs of
            arrays. Labels are integers or rows of one number for each class. In a multi-hot row, any of the image's
            labels is right. For one score they are 0 and 1.
        loss: A loss that fits scores and labels, such as
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`, and `BinaryCrossentropy` for one score:
            the threshold is 0 for logits and 0.5 for probabilities.
        epsilon: Radius of the ball, in units of 1/255; 0 for accuracy on the images as they are.
        value_range: `(lower, upper)` of valid inputs, or one such pair for each channel; None to infer it from the
            model's first layers, as in `ConAdvModel`.
        num_steps: Number of gradient steps.
        step_size: Length of a step, in units of 1/255; None for epsilon / num_steps.
        targeted: Whether to descend a random wrong class's loss instead of ascending the true one's.
        random_start: Probability of a random point of the ball as the starting point.
        norm: "linf" or "l2".
        seed: Seed of targets and starts, together with the number of the batch.

    Returns:
        Accuracy, 0 to 1.

    Warns:
        UserWarning: If the first batch does not fit `value_range`, or if the gradient of 5 % of the images or more is
            zero, so that the attack cannot change them.

    Raises:
        ValueError: If an argument is out of its range, if inputs are not images, if there are none, if a targeted
            attack has no wrong class, or if answers are not right or wrong: `metrics_under_attack` measures regression
            and several outputs.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", arXiv 1412.6572; several
    steps: Madry et al., arXiv 1706.06083.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> batches = [(np.zeros((8, 4, 4, 1), "float32"), np.zeros(8, "int32"))]
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> 0 <= accuracy_under_attack(net, batches, loss, epsilon=8.0, value_range=(0.0, 1.0)) <= 1
        True
    """
    measured = RobustAccuracy(
        model, loss, epsilon, value_range, num_steps, step_size, targeted, random_start, norm=norm, seed=seed
    )
    return measured(batches)


class RobustAccuracy:
    """Measures `accuracy_under_attack` of a model again and again, as its weights change, with one compiled program.

    Args:
        model: As in `accuracy_under_attack`, as are the others.
        loss: See there.
        epsilon: See there.
        value_range: See there.
        num_steps: See there.
        step_size: See there.
        targeted: See there.
        random_start: See there.
        norm: See there.
        seed: See there.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Any,
        epsilon: float = 4.0,
        value_range: Sequence[Any] | None = None,
        num_steps: int = 1,
        step_size: float | None = None,
        targeted: bool = False,
        random_start: float = 0.0,
        norm: str = "linf",
        seed: int = 0,
    ) -> None:
        check_loss(loss)
        self._attacks = ModelAttacks(
            model,
            lambda y, output, sample_weight: attacked_loss(loss, output),
            lambda loss, y, outputs: ops.count_nonzero(loss.are_right(y, outputs)),
            epsilon=epsilon,
            value_range=value_range,
            num_steps=num_steps,
            step_size=step_size,
            targeted=targeted,
            random_start=random_start,
            norm=norm,
            seed=seed,
        )

    def __call__(self, batches: Iterable[tuple[Any, Any]]) -> float:
        """Returns the accuracy on these batches after the attack, with the model's present weights."""
        right = total = 0
        for size, _, _, count in self._attacks(batches):
            right += int(count)
            total += size
        return right / total
