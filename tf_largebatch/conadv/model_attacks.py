"""Attacks on a model as it is evaluated, batch by batch, by one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.check import plain
from tf_largebatch.conadv import images as image_checks
from tf_largebatch.conadv.arguments import check_arguments, plain_range, warn_of_unit
from tf_largebatch.conadv.attack import ImageAttack
from tf_largebatch.conadv.attacked_loss import AttackedLoss, require_untargeted
from tf_largebatch.conadv.backend import compiled
from tf_largebatch.conadv.input_range import inferred_range
from tf_largebatch.keras_internals import output_spec
from tf_largebatch.norms.targets import as_arrays, check_lengths
from tf_largebatch.training.step_seed import step_seed


class ModelAttacks:
    """Attacks batches of images with a model's own gradients and computes a result of each.

    Layers run in inference mode and no variable is written. The other arguments are those of `accuracy_under_attack`.

    Args:
        model: The model, with one input of images.
        loss: Function of labels, the specifications of the model's outputs, and weights of the examples or None;
            returns the loss to attack.
        result: Function of that loss, labels, and outputs for the adversarial images; what it returns is computed
            within the program.
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
        loss: Callable[[Any, Any, Any], AttackedLoss],
        result: Callable[[AttackedLoss, Any, Any], Any],
        *,
        epsilon: float,
        value_range: Sequence[Any] | None,
        num_steps: int,
        step_size: float | None,
        targeted: bool,
        random_start: float,
        norm: str,
        seed: int,
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
        warn_of_unit(plain(epsilon))
        limits = inferred_range(model) if value_range is None else plain_range(value_range)
        self._attack = ImageAttack(epsilon, limits, step_size, num_steps, targeted, random_start, norm=norm)
        self._model, self._loss, self._result, self._seed = model, loss, result, seed
        image_checks.check_accepts_floating(model)
        self._program: Any = None
        self._attacked_loss: Any = None

    def __call__(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any, Any, Any]]:
        """Yields for each batch the number of images, labels and weights as tensors, and the result after the attack.

        Warns:
            UserWarning: If the first batch does not fit `value_range`; at the end, if the gradient of 5 % of the images
                or more was zero.

        Raises:
            ValueError: If images, labels, loss and attack do not fit together, or if there are no images.
        """
        without_gradient = total = 0
        for number, batch in enumerate(batches):
            x, y, sample_weight = _unpacked(batch)
            image_checks.check_are_images(x)
            image_checks.check_channels(self._attack.value_range, x)
            if not total:
                image_checks.warn_unless_in_range(x, self._attack.value_range)
            check_lengths(int(x.shape[0]), y=y, sample_weight=sample_weight)
            x = image_checks.as_floating(x)
            y, sample_weight = keras.tree.map_structure(
                lambda t: None if t is None else ops.convert_to_tensor(t), (as_arrays(y), sample_weight)
            )
            if self._program is None:
                self._prepare(x, y, sample_weight)
            self._attacked_loss.check_labels(y)
            result, vanished = self._program(x, y, sample_weight, ops.convert_to_tensor(number, "int32"))
            without_gradient += int(vanished)
            total += int(x.shape[0])
            yield int(x.shape[0]), y, sample_weight, result
        if not total:
            raise ValueError("batches must hold at least one image; received none: was a generator used up?")
        if self._attack.epsilon > 0:
            image_checks.warn_without_gradient(without_gradient, total)

    def _prepare(self, x: Any, y: Any, sample_weight: Any) -> None:
        """Makes the program, given a batch."""
        if not self._model.built:
            self._model(x[:1])
        self._attacked_loss = self._loss(y, output_spec(self._model, x), sample_weight)
        require_untargeted(self._attacked_loss, self._attack.targeted)
        # Compiled even where the model runs eagerly: a graph of TensorFlow shows the logits behind a softmax.
        self._program = compiled(self._attacked, self._model.variables)

    def _attacked(self, x: Any, y: Any, sample_weight: Any, number: Any) -> tuple[Any, Any]:
        outputs, loss = functools.partial(self._model, training=False), self._attacked_loss
        seeds = functools.partial(step_seed, self._seed, number)
        found = self._attack.images(x, y, outputs, loss, seeds, sample_weight)
        return self._result(loss, y, outputs(found.images)), ops.count_nonzero(found.without_gradient)


def _unpacked(batch: Any) -> tuple[Any, Any, Any]:
    """Returns images, labels and weights of a batch.

    Raises:
        ValueError: If it is an array, as when images were given in place of batches, or has no labels.
    """
    pair = isinstance(batch, tuple | list) and len(batch) in (2, 3)
    if not pair or batch[1] is None:
        received = (
            f"a {type(batch).__name__} of shape {batch.shape}" if hasattr(batch, "shape") else type(batch).__name__
        )
        raise ValueError(
            f"batches must yield (images, labels) or (images, labels, weights); received {received}: pass [(x, y)] for "
            "a single batch."
        )
    return keras.utils.unpack_x_y_sample_weight(tuple(batch))
