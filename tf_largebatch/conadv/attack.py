"""The attack on a batch of labelled images: the loss it follows, its starting points, the pass it differentiates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.conadv.class_labels import in_the_form_of, loss_sum, to_classes
from tf_largebatch.core import pgd as attacks
from tf_largebatch.training.step_seed import Purpose

# The authors' choice. Of one example's loss, so it is about what a dynamic loss scale comes to at a batch of 256.
_LOSS_SCALE = 128.0


@dataclasses.dataclass(frozen=True)
class ImageAttack:
    """How adversarial copies of images are made; the attributes mean what they mean in `ConAdvModel`.

    Attributes:
        epsilon: Radius of the ball, pixels of 255.
        value_range: `(lower, upper)` of valid inputs, or one such pair for each channel.
        step_size: Length of a step, pixels of 255; None for epsilon / num_steps.
        num_steps: Number of gradient steps.
        targeted: Whether to descend a random wrong class's loss instead of ascending the true one's.
        random_start: Probability of a random point of the ball as starting point.
        kind: "pgd", or "noise" for a random point of the ball.
        norm: "linf" or "l2".
    """

    epsilon: float
    value_range: Sequence[Any]
    step_size: float | None = None
    num_steps: int = 1
    targeted: bool = True
    random_start: float = 0.8
    kind: str = "pgd"
    norm: str = "linf"

    def copies(
        self,
        x: tf.Tensor,
        y: Any,
        scores: Callable[[tf.Tensor], Any],
        loss: Any,
        num_classes: int,
        seed: Callable[[Purpose], tf.Tensor],
    ) -> tf.Tensor:
        """Adversarial copies of images.

        Args:
            x: images, float32 or float64, [batch, height, width, channels], in `value_range`.
            y: their labels, as `class_labels.are_sparse` takes them.
            scores: the forward pass, from images to one score per class, [batch, num_classes].
            loss: of labels in the form of y and scores.
            num_classes: number of classes.
            seed: seeds of stateless random numbers for each purpose.

        Returns:
            Tensor in the shape and dtype of x, through which no gradient flows.
        """
        lower, upper = attacks.bounds(self.value_range)
        epsilon = attacks.in_input_units(self.epsilon, self.value_range)
        if self.kind == "noise":
            return attacks.noise(x, epsilon, lower, upper, self.norm, seed(Purpose.NOISE))
        if self.targeted:
            wrong = attacks.random_wrong_classes(to_classes(y, num_classes), num_classes, seed(Purpose.TARGETS))
            y = in_the_form_of(y, wrong, num_classes)

        def loss_gradient(x: tf.Tensor) -> Any:
            # Nothing but the images is watched: no weight gradient is computed.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                target = _LOSS_SCALE * loss_sum(loss, y, scores(x))
            return tape.gradient(target, x)

        step_size = self.epsilon / self.num_steps if self.step_size is None else self.step_size
        return attacks.perturb(
            x,
            loss_gradient,
            epsilon=epsilon,
            step_size=attacks.in_input_units(step_size, self.value_range),
            num_steps=self.num_steps,
            lower=lower,
            upper=upper,
            norm=self.norm,
            descend=self.targeted,
            random_start_probability=self.random_start,
            seed=seed(Purpose.START),
        )

    def distances(self, copies: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """How far each copy is from its image, in pixels of 255: mean absolute change, with "l2" the distance."""
        pixels = tf.abs(copies - x) / tf.cast(attacks.in_input_units(1.0, self.value_range), x.dtype)
        if self.norm == "linf":
            return tf.reduce_mean(pixels, axis=[1, 2, 3])
        return tf.sqrt(tf.reduce_sum(tf.square(pixels), axis=[1, 2, 3]))
