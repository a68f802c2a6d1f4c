"""EinsumDense: `y = einsum(equation, x, W)`; keeping the example's letter in the sum gives `G_i`."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.recorder import Recorder, squared_norms_and_sum, sum_squares_per_example
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.rules.dense import activate, refuse_lora
from tf_largebatch.norms.shapes import of_examples


@dataclasses.dataclass(frozen=True)
class Einsum:
    """`y = einsum(equation, a, w)`; the first letter of `a` and of `y` is the example's."""

    a: tf.Tensor
    equation: str

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i`, shape [b, *w.shape]."""
        a_letters, w_letters, y_letters = einsum_letters(self.equation, self.a.shape.rank)
        equation = f"{a_letters},{y_letters}->{a_letters[0]}{w_letters}"
        return tf.einsum(equation, of_examples(self.a, examples), of_examples(d, examples))

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Directly."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The contributions add up to the gradient."""
        return squared_norms_and_sum(self.contributions(d, slice(None)))


def einsum_letters(equation: str, input_rank: int) -> tuple[str, str, str]:
    """The letters of input, kernel and output of an EinsumDense equation, an ellipsis written out."""
    equation = equation.replace(" ", "")
    left, y_letters = equation.split("->")
    a_letters, w_letters = left.split(",")
    if "..." in a_letters:
        free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
        spelled = "".join(free[: input_rank - len(a_letters.replace("...", ""))])
        a_letters, y_letters = a_letters.replace("...", spelled), y_letters.replace("...", spelled)
    return a_letters, w_letters, y_letters


def refuse_einsum(layer: Any) -> str | None:
    """The equation must keep the examples first and apart, and sum the kernel only against input or output."""
    rank = len(layer.equation.split(",")[0].replace(" ", "").replace("...", "")) + 1
    a_letters, w_letters, y_letters = einsum_letters(layer.equation, rank)
    if a_letters[0] != y_letters[0] or a_letters[0] in w_letters:
        return f"equation {layer.equation!r} does not keep the examples on the first axis"
    if set(w_letters) - set(a_letters) - set(y_letters):
        return f"equation {layer.equation!r} sums the kernel over an axis of its own"
    return refuse_lora(layer)


@KERAS.register(keras.layers.EinsumDense, refuse=refuse_einsum)
def einsum_dense(layer: Any, recorder: Recorder, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """`y = activation(einsum(equation, x, W) + b)`."""
    y = ops.einsum(layer.equation, inputs, recorder.value(layer.kernel))
    y = recorder.record(layer.kernel, y, Einsum(inputs, layer.equation))
    if layer.bias is not None:
        y = add_bias(recorder, layer.bias, y, layer.bias.shape)
    return activate(layer, y)
