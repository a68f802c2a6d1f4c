"""The backward pass, seen at the recorded tensors: norms are worked out where and when their `d` appears.

Left to itself TensorFlow's executor puts the norms off, since nothing waits for them, and then keeps every layer's
input and output gradient until the end of the step. So the gradient that goes on to one layer is made to wait for the
norms of the layer before it (in the order of the backward pass): both can still overlap, and memory stays that of the
plain step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.norms.kernels.device import device
from tf_largebatch.norms.kernels.xla_convolution import kept_apart
from tf_largebatch.norms.recorder import Use

Together = tuple[tf.Tensor, tf.Tensor]


@dataclasses.dataclass
class Backward:
    """What the backward pass brought to the uses of one forward pass.

    Attributes:
        uses: all uses, in the order of the forward pass.
        window: the measured examples, None for all.
        d: for each use that the gradient reached, by its number, `d = dLoss/dy`.
        squares: for each variable with one use, by the use's number, `||G_i||^2` of the measured examples.
        shares: likewise `sum_i G_i` of all examples, where it came with the norms.
    """

    uses: Sequence[Use]
    window: slice | None
    d: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)
    squares: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)
    shares: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        of_variable: dict[int, int] = {}
        for use in self.uses:
            of_variable[id(use.variable)] = of_variable.get(id(use.variable), 0) + 1
        self._single = {use.number for use in self.uses if of_variable[id(use.variable)] == 1}
        first_of_call: dict[int, int] = {}
        for use in self.uses:
            first_of_call.setdefault(use.layer_call, use.number)
        self._last_of_layer = set(first_of_call.values())  # the backward pass comes the other way
        self._layer_call: int | None = None
        self._results: list[tf.Tensor] = []

    def __call__(self, use: Use, d: tf.Tensor) -> tf.Tensor:
        """Takes note of a use's `d` and returns it for the layers below."""
        wait = self._after_the_layer_before if device() != "tpu" else self._kept_apart_on_tpu
        d = wait(use, tf.convert_to_tensor(d))
        self.d[use.number] = d
        if use.number in self._single:
            self._work_out(use, d)
        return d

    def _work_out(self, use: Use, d: tf.Tensor) -> None:
        contraction: Any = use.contraction
        free = getattr(contraction, "all_norms_are_free", None)
        every = self.window is None or (free is not None and free(d))
        together = contraction.norms_and_gradient(d) if every else None
        if together is None:
            examples = slice(None) if self.window is None else self.window
            self.squares[use.number] = contraction.squared_norms(d, examples)
            self._results.append(self.squares[use.number])
        else:
            squares, self.shares[use.number] = together
            self.squares[use.number] = squares if self.window is None else squares[self.window]
            self._results += together

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
        """There XLA orders the work, which knows no control dependencies, but barriers.

        It is the layer's kernel that waits, not its bias, whose sums are fused with what computes `d`.
        """
        if use.number not in self._last_of_layer or not self._results:
            return d
        before, self._results = self._results, []
        return kept_apart(d, *before)[0]
