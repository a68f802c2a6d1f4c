"""Computes the norms during the backward pass, as soon as the gradient of a recorded tensor is there.

TensorFlow's executor would compute the norms last, because nothing waits for them, and would keep every layer's input
and output gradient until the end of the step. So the gradient that goes on to a layer waits for the norms of the layer
before it, in the order of the backward pass. The two can still overlap, and memory stays that of the plain step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.xla_convolution import kept_apart
from tf_largebatch.norms.device import device
from tf_largebatch.norms.recorder import Use
from tf_largebatch.norms.uses import Together, measure_uses


@dataclasses.dataclass
class Backward:
    """Collects the gradients that the backward pass brings to the uses of one forward pass, and measures them.

    Attributes:
        uses: All uses, in the order of the forward pass.
        window: The measured examples; None for all.
        d: `d = dLoss/dy` of each use that the gradient has reached, by the use's number.
        together: The norms, and shares of the gradient, of each variable all of whose uses the gradient has reached, by
            the variable's identity.
    """

    uses: Sequence[Use]
    window: slice | None
    d: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)
    together: dict[int, Together] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._uses_of: dict[int, list[Use]] = {}
        for use in self.uses:
            self._uses_of.setdefault(id(use.variable), []).append(use)
        first_of_call: dict[int, int] = {}
        for use in self.uses:
            first_of_call.setdefault(use.layer_call, use.number)
        self._last_of_layer = set(first_of_call.values())  # the backward pass comes the other way
        self._layer_call: int | None = None
        self._results: list[tf.Tensor] = []

    def __call__(self, use: Use, d: tf.Tensor) -> tf.Tensor:
        """Stores a use's `d` and returns it for the layers below."""
        wait = self._after_the_layer_before if device() != "tpu" else self._kept_apart_on_tpu
        d = wait(use, tf.convert_to_tensor(d))
        self.d[use.number] = d
        uses = self._uses_of[id(use.variable)]
        if all(u.number in self.d for u in uses):
            self._measure(uses)
        return d

    def _measure(self, uses: Sequence[Use]) -> None:
        found = measure_uses([(use, self.d[use.number]) for use in uses], self.window)
        self.together[id(uses[0].variable)] = found
        self._results += [found.squares, *found.gradients]

    def _after_the_layer_before(self, use: Use, d: tf.Tensor) -> tf.Tensor:
        if use.layer_call == self._layer_call:
            return d
        self._layer_call, before = use.layer_call, self._results
        self._results = []
        if not before or tf.executing_eagerly():
            return d
        with tf.control_dependencies(before):
            return tf.identity(d)

    def _kept_apart_on_tpu(self, use: Use, d: tf.Tensor) -> tf.Tensor:
        """Returns `d` behind a barrier: on a TPU XLA orders the work, and it ignores control dependencies.

        The layer's kernel waits. Its bias does not, because XLA fuses the sums for it with what computes `d`.
        """
        if use.number not in self._last_of_layer or not self._results:
            return d
        before, self._results = self._results, []
        return kept_apart(d, *before)[0]
