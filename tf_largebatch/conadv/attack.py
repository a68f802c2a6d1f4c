"""The attack on a batch of labelled images, in either Keras world.

To add an attack, write its function in a file and add a row to `ATTACKS`; `ConAdvModel(attack=...)` then accepts its
name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import ops

from tf_largebatch.check import require
from tf_largebatch.conadv.attacked_loss import AttackedLoss
from tf_largebatch.conadv.backend import image_gradient
from tf_largebatch.conadv.probability_logarithms import followed
from tf_largebatch.core import pgd
from tf_largebatch.core.balls import ball
from tf_largebatch.training.step_seed import Purpose

Seeds = Callable[[Purpose], Any]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an attack may do to an image. Distances are in the unit of the images, scalars or one for each channel.

    Attributes:
        epsilon: Radius of the ball.
        step_size: Length of a step.
        num_steps: Number of steps.
        lower: Smallest valid value.
        upper: Largest valid value.
        norm: Name of the ball, see `core.balls`.
        descend: Whether to decrease the objective (a targeted attack) or to increase it.
        random_start: Probability of a random point of the ball as the starting point.
    """

    epsilon: Any
    step_size: Any
    num_steps: int
    lower: Any
    upper: Any
    norm: str
    descend: bool
    random_start: float


@dataclasses.dataclass(frozen=True)
class Attack:
    """A row of the table of attacks.

    Attributes:
        images: Function of clean images [B, ...], `Limits`, the objective's gradient (a function from images to a
            tensor in their shape), and seeds (a function from `Purpose` to int32 [2]); gives the adversarial images.
        reads_weights: Whether it calls the gradient: if not, it needs neither the model nor stale weights.
    """

    images: Callable[[Any, Limits, Callable[[Any], Any], Seeds], Any]
    reads_weights: bool = True


class Attacked(NamedTuple):
    """Adversarial images, and which of them the attack had no gradient for.

    Attributes:
        images: In the shape and dtype of the clean images; no gradient flows through them.
        without_gradient: bool [B], whether the first gradient with respect to the image was zero. All False for an
            attack that reads no gradient.
    """

    images: Any
    without_gradient: Any


def _projected_gradient(x: Any, limits: Limits, gradient: Callable[[Any], Any], seeds: Seeds) -> Any:
    return pgd.perturb(
        x,
        gradient,
        epsilon=limits.epsilon,
        step_size=limits.step_size,
        num_steps=limits.num_steps,
        lower=limits.lower,
        upper=limits.upper,
        norm=limits.norm,
        descend=limits.descend,
        random_start_probability=limits.random_start,
        seed=seeds(Purpose.START),
    )


def _noise(x: Any, limits: Limits, gradient: Callable[[Any], Any], seeds: Seeds) -> Any:
    return pgd.noise(x, limits.epsilon, limits.lower, limits.upper, limits.norm, seeds(Purpose.NOISE))


ATTACKS: dict[str, Attack] = {
    "pgd": Attack(_projected_gradient),
    "noise": Attack(_noise, reads_weights=False),
}


def attack_named(name: str) -> Attack:
    """Returns the attack of that name.

    Raises:
        ValueError: If `ATTACKS` has no such name.
    """
    require(name in ATTACKS, "attack", name, f"one of {', '.join(map(repr, ATTACKS))}")
    return ATTACKS[name]


@dataclasses.dataclass(frozen=True)
class ImageAttack:
    """How adversarial images are made; the attributes mean what they mean in `ConAdvModel`.

    Attributes:
        epsilon: Radius of the ball, in units of 1/255.
        value_range: `(lower, upper)` of valid inputs, or one such pair for each channel.
        step_size: Length of a step, in units of 1/255; None for epsilon / num_steps.
        num_steps: Number of gradient steps.
        targeted: Whether to descend the loss of a random wrong class instead of ascending that of the true one.
        random_start: Probability of a random point of the ball as the starting point.
        kind: Name of the attack, see `ATTACKS`.
        norm: Name of the ball, see `core.balls`.
    """

    epsilon: Any
    value_range: Sequence[Any]
    step_size: Any = None
    num_steps: int = 1
    targeted: bool = True
    random_start: float = 0.8
    kind: str = "pgd"
    norm: str = "linf"

    def images(
        self,
        x: Any,
        y: Any,
        outputs: Callable[[Any], Any],
        loss: AttackedLoss,
        seeds: Seeds,
        sample_weight: Any = None,
    ) -> Attacked:
        """Makes adversarial images.

        Args:
            x: Images, floating, [batch, height, width, channels], in `value_range`.
            y: Their labels, as the loss takes them.
            outputs: The forward pass of a Keras 3 or tf_keras model, from images to its outputs.
            loss: The loss to ascend or, for targets, to descend.
            seeds: Gives a seed, int32 [2], for each purpose of random numbers.
            sample_weight: Weights of the examples, or None.
        """
        target = y
        if self.targeted and attack_named(self.kind).reads_weights:
            target = loss.wrong_labels(y, seeds(Purpose.TARGETS))
        gradients: list[Any] = []

        def gradient(x: Any) -> Any:
            def forward(x: Any) -> tuple[Any, Any]:
                return loss.direction(target, sample_weight, followed(outputs, x))

            gradients.append(image_gradient(forward, x))
            if gradients[0] is None:
                raise ValueError(_NO_GRADIENT)
            return gradients[-1]

        images = attack_named(self.kind).images(x, self._limits(), gradient, seeds)
        if not gradients:
            return Attacked(images, ops.zeros((ops.shape(x)[0],), "bool"))
        return Attacked(images, pgd.without_gradient(gradients[0]))

    def sizes(self, adversarial: Any, x: Any) -> Any:
        """Returns the size of each image's perturbation in units of 1/255, [B], as the ball defines it.

        With "linf" it is the mean absolute change of a value, with "l2" the distance.
        """
        unit = ops.cast(pgd.in_input_units(1.0, self.value_range), x.dtype)
        return ball(self.norm).size((ops.cast(adversarial, x.dtype) - x) / unit)

    def _limits(self) -> Limits:
        lower, upper = pgd.bounds(self.value_range)
        step_size = self.epsilon / self.num_steps if self.step_size is None else self.step_size
        return Limits(
            epsilon=pgd.in_input_units(self.epsilon, self.value_range),
            step_size=pgd.in_input_units(step_size, self.value_range),
            num_steps=self.num_steps,
            lower=lower,
            upper=upper,
            norm=self.norm,
            descend=self.targeted,
            random_start=self.random_start,
        )


_NO_GRADIENT = (
    "The model must depend on its images through floating-point operations; no gradient reaches them: a layer casts or "
    "rounds them to integers, or stops the gradient. Let that layer pass floating-point images on."
)
