"""The accuracy of a classifier under attack."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.conadv import images as image_checks
from tf_largebatch.conadv.arguments import check_arguments, plain_range
from tf_largebatch.conadv.attack import ImageAttack
from tf_largebatch.conadv.backend import compiled
from tf_largebatch.conadv.class_labels import are_right, are_sparse, classes_of, classification_loss
from tf_largebatch.norms.targets import check_classes, check_lengths
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
    """Returns the share of the images that a classifier gets right after an attack with its own gradients.

        x^ = projection of  x + step_size * sign(d loss(y, model(x)) / d x)  onto  |x^ - x| <= epsilon  and the range
        accuracy = mean over all images of [argmax model(x^) = y]

    With the defaults this is the fast gradient sign method. Layers run in inference mode, and no variable is written.
    One step says little about stronger attacks. The gradient's direction is computed so that it does not vanish for
    confident classifiers, whatever the scale of their logits; see `tf_largebatch.conadv.objective`.

    Args:
        model: A classifier with one input, images [batch, height, width, channels], and one score for each class,
            [batch, classes]: logits or probabilities.
        batches: Batches of images in `value_range` and their labels, such as a `tf.data.Dataset` or a list of pairs of
            arrays. Labels are integers or rows of one number for each class. In a multi-hot row, any of the image's
            labels is right.
        loss: A classification loss that fits scores and labels, such as
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`.
        epsilon: Radius of the ball, in units of 1/255; 0 for accuracy on the images as they are.
        value_range: `(lower, upper)` of valid inputs, or one such pair for each channel.
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
        ValueError: If an argument is out of its range, if inputs are not images, if there are none, or if the model
            does not give one score for each of 2 classes or more.

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
        value_range: Sequence[Any] = (0.0, 255.0),
        num_steps: int = 1,
        step_size: float | None = None,
        targeted: bool = False,
        random_start: float = 0.0,
        norm: str = "linf",
        seed: int = 0,
    ) -> None:
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
        limits = plain_range(value_range)
        self._attack = ImageAttack(epsilon, limits, step_size, num_steps, targeted, random_start, norm=norm)
        self._model, self._loss, self._seed = model, classification_loss(loss), seed
        image_checks.check_accepts_floating(model)
        self._counts: Any = None
        self._output: Any = None

    def __call__(self, batches: Iterable[tuple[Any, Any]]) -> float:
        """Returns the accuracy on these batches after the attack, with the model's present weights."""
        right = without_gradient = total = 0
        for number, batch in enumerate(batches):
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            image_checks.check_are_images(x)
            image_checks.check_channels(self._attack.value_range, x)
            if not total:
                image_checks.warn_unless_in_range(x, self._attack.value_range)
            if self._counts is None:
                if not self._model.built:
                    self._model(image_checks.as_floating(x[:1]))
                images = keras.KerasTensor((1, *x.shape[1:]), keras.config.floatx())
                self._output = self._model.compute_output_spec(images)
                self._counts = _counts_function(self._model, self._attack, self._loss, self._seed)
            check_lengths(int(x.shape[0]), y=y)
            check_classes(self._loss, y, self._output)
            arguments = ops.convert_to_tensor(y), ops.convert_to_tensor(number, "int32")
            found = self._counts(image_checks.as_floating(x), *arguments)
            right += int(found[0])
            without_gradient += int(found[1])
            total += int(x.shape[0])
        if not total:
            raise ValueError("batches must hold at least one image; received none: was a generator used up?")
        if self._attack.epsilon > 0:
            image_checks.warn_without_gradient(without_gradient, total)
        return right / total


def _counts_function(model: keras.Model, attack: ImageAttack, loss: Any, seed: int) -> Any:
    """Returns a function that counts the images of a batch that are right after the attack, and those without gradient.

    It is compiled even where the model runs eagerly: a graph of TensorFlow shows the logits behind a softmax.
    """

    def counts(x: Any, y: Any, number: Any) -> tuple[Any, Any]:
        scores = functools.partial(model, training=False)
        num_classes = classes_of(scores(x))
        are_sparse(y, num_classes)
        found = attack.images(x, y, scores, loss, num_classes, functools.partial(step_seed, seed, number))
        right = are_right(y, scores(found.images), num_classes)
        return ops.count_nonzero(right), ops.count_nonzero(found.without_gradient)

    return compiled(counts, model.variables)
