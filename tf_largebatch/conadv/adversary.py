"""What makes the adversarial images of ConAdvModel: the attack, its weights, settings and random numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.conadv import images as image_checks
from tf_largebatch.conadv.arguments import TRACED
from tf_largebatch.conadv.attack import ImageAttack, attack_named
from tf_largebatch.conadv.attacked_loss import AttackedLoss, attacked_loss, require_untargeted
from tf_largebatch.conadv.auxiliary_batch_norm import AuxiliaryBatchNorms, batch_normalizations
from tf_largebatch.conadv.backend import compiled, replicas, step_context
from tf_largebatch.conadv.stale_weights import StaleWeights
from tf_largebatch.core import random_numbers
from tf_largebatch.keras_internals import compiled_loss
from tf_largebatch.norms.targets import as_arrays
from tf_largebatch.training.micro_batches import batch_size_of, mapped_over_micro_batches, unless_empty
from tf_largebatch.training.step_seed import Purpose, step_seed
from tf_largebatch.training.updating_wrapper import UpdatingWrapper


class Adversary(UpdatingWrapper):
    """The part of ConAdvModel that attacks a batch; the arguments of its constructor are attributes.

    Attributes:
        stale: The snapshots of stale weights.
        adversarial_batch_norms: The auxiliary batch norms of adversarial images.
    """

    epsilon: float
    step_size: float | None
    num_steps: int
    targeted: bool
    attack: str
    seed: int
    stale: StaleWeights
    adversarial_batch_norms: AuxiliaryBatchNorms
    get_ready: Callable[[Any], None]
    _output: Any
    _settings: Any
    _attack_functions: dict[bool, Any]

    def adversarial_images(self, x: Any, y: Any, step: int | None = None, main: bool = False) -> Any:
        """Returns adversarial images, made with the present weights.

        Args:
            x: Images, [batch, height, width, channels], in `value_range`.
            y: Their labels, as in training.
            step: Number of the step whose random numbers to use; None for the present one.
            main: Whether to attack the classifier as it is evaluated, by its own batch normalizations in inference
                mode; else as in training.

        Returns:
            Tensor in the shape of x, float32 (float64 for such x).
        """
        data = keras.tree.map_structure(ops.convert_to_tensor, (x, as_arrays(y)))
        self.end_step()
        self.get_ready(data)
        step = ops.cast(self.stale.step if step is None else step, self.stale.step.dtype)
        return self._attack_of(main)(data, step)

    def attack_present(self, data: Any) -> Any:
        """Returns the adversarial images of the present step's batch, made with theta_{t - staleness}."""
        return self._attacked(data, self.stale.step, lag=self.stale.staleness)

    def attack_next(self, data: Any) -> Any:
        """Returns the adversarial images of the next step's batch, with theta_{t+1-staleness}: before the update."""
        return self._attacked(data, self.stale.step + 1, lag=self.stale.staleness - 1)

    def settings(self) -> Any:
        """Returns the values of the arguments that may change without a new trace, as the step takes them."""
        return np.asarray(self._settings_values(), settings_dtype())

    def use_settings(self, values: Any) -> None:
        """Makes the code that follows, within a step, use these values."""
        self._settings.assign(values)

    def _settings_values(self) -> list[float]:
        """Radius, step and weight of the adversarial loss: what may change without a new trace."""
        step_size = self.epsilon / self.num_steps if self.step_size is None else self.step_size
        return [float(self.epsilon), float(step_size), float(self.adversarial_weight)]

    def _attacked_variables(self) -> list[Any]:
        """Returns the variables that the attack reads, without seeds."""
        mains = {id(v) for layer in batch_normalizations(self.model) for v in layer.weights}
        return [*(v for v in self.model.weights if id(v) not in mains), *self.adversarial_batch_norms.weights]

    def _attack_of(self, main: bool) -> Callable[..., Any]:
        """Returns the attack with the present weights, compiled: a graph shows the logits behind a softmax."""

        def attack(data: Any, step: Any) -> Any:
            return self._attacked(data, step, lag=0, main=main)

        if self.run_eagerly:
            return attack
        # What is read while the attack is traced.
        read = [self._compiled_loss(), compiled_loss(self), self.examples_at_a_time]
        read += [getattr(self, name) for name in TRACED]
        read += [layer.trainable for layer in batch_normalizations(self.model)]
        known = self._attack_functions.get(main)
        if known is None or known[0] != read:
            known = self._attack_functions[main] = read, compiled(attack, [*self.variables, self._settings])
        return known[1]

    def _attacked(self, data: Any, step: Any, lag: int, main: bool = False) -> Any:
        """Adversarial images for a step, made with the weights of `lag` steps ago."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = image_checks.as_floating(keras.tree.flatten(x)[0])
        with step_context.named("attack"):
            weights = self.stale.lag(lag)
            if self.examples_at_a_time is None:
                whole = functools.partial(self._perturbed, (x, y, sample_weight), step, weights, main)
                return unless_empty(whole, x) if self._may_be_empty(batch_size_of(x)) else whole()
            return mapped_over_micro_batches(
                lambda part, j: self._perturbed(part, step, weights, main, j),
                (x, y, sample_weight),
                x,
                self.examples_at_a_time,
            )

    def _perturbed(self, data: Any, step: Any, weights: list[tuple[Any, Any]], main: bool, part: Any = 0) -> Any:
        x, y, sample_weight = data
        state = [*weights, *self._layer_seeds(self.model, step, Purpose.LAYERS, part)]

        def outputs(x: Any) -> Any:
            with step_context.scope(state), contextlib.ExitStack() as stack:
                if not main:
                    stack.enter_context(self.adversarial_batch_norms.intercept())
                return self.model(x, training=not main)

        seed = functools.partial(self._seed, step, part=part)
        return self._image_attack().images(x, y, outputs, self.loss_to_attack(), seed, sample_weight).images

    def _image_attack(self) -> ImageAttack:
        return ImageAttack(
            epsilon=self._settings[0],
            value_range=self.value_range,
            step_size=self._settings[1],
            num_steps=self.num_steps,
            targeted=self.targeted,
            random_start=self.random_start,
            kind=self.attack,
            norm=self.norm,
        )

    def loss_to_attack(self) -> AttackedLoss:
        """Returns the loss that the attack follows.

        Raises:
            ValueError: If there is none, or if a targeted attack has no wrong class to be the target.
        """
        found = attacked_loss(self._compiled_loss(), self._output, compiled_loss(self))
        if attack_named(self.attack).reads_weights:
            require_untargeted(found, self.targeted)
        return found

    def _compiled_loss(self) -> Any:
        return getattr(self, "loss", None) if self.compiled else None

    def _seed(self, step: Any, purpose: Purpose, part: Any = 0) -> Any:
        return step_seed(self.seed, step, purpose, replicas.number_of_this_replica(), part)

    def _layer_seeds(
        self, layer: keras.layers.Layer, step: Any, purpose: Purpose, part: Any = 0
    ) -> list[tuple[Any, Any]]:
        """Pairs each seed generator of a layer with a state, so that a pass draws the same numbers whenever it runs."""
        weights = {id(v) for v in layer.weights}
        states = [v for v in layer.variables if id(v) not in weights]
        seed = self._seed(step, purpose, part)
        return [(v, ops.cast(random_numbers.fold_in(seed, i), v.dtype)) for i, v in enumerate(states)]


def settings_dtype() -> str:
    """Returns the dtype of `Adversary.settings`."""
    return "float64" if keras.config.floatx() == "float64" else "float32"
