"""EinsumDense: `y = einsum(equation, x, W)`; `G_i` is the same sum with the example's letter kept."""

from __future__ import annotations

import dataclasses
import string
from typing import Any

from keras import ops

from tf_largebatch.norms.kernels import matmul
from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.rules.dense import activate, refuse_lora
from tf_largebatch.norms.shapes import Size, of_examples, product, split_rows, static_or_dynamic_shape


@dataclasses.dataclass(frozen=True)
class Einsum:
    """`y = einsum(equation, a, w)`; the first letter of `a` and of `y` is the example's.

    The letters of `w` that only `a` has are inputs, those that only `y` has are outputs, and those that both have make
    `w` several matrices; all other letters of `a` and `y` are positions.
    """

    a: Tensor
    equation: str

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i` in float32, shape [b, *w.shape]."""
        letters = self._letters()
        return letters.as_kernel(matmul.contributions(*self._matrices(d, examples)), self._sizes(d), batched=True)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """As for Dense: the Gram form where it takes fewer products, else directly."""
        return matmul.squared_norms(*self._matrices(d, examples))

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Directly, the contributions add up to the gradient."""
        together = matmul.norms_and_gradient(*self._matrices(d, slice(None)))
        if together is None:
            return None
        return together[0], self._letters().as_kernel(together[1], self._sizes(d), batched=False)

    def over_rows(self, batch: Size, rows: Size) -> Einsum:
        """Returns the contraction in which `rows` rows of `a`, one after the other, are positions of one example."""
        a, w, y = einsum_letters(self.equation, len(self.a.shape))
        row = next(letter for letter in string.ascii_letters if letter not in a + w + y)
        return Einsum(split_rows(self.a, batch, rows), f"{a[0]}{row}{a[1:]},{w}->{y[0]}{row}{y[1:]}")

    def _letters(self) -> Letters:
        return Letters(*einsum_letters(self.equation, len(self.a.shape)))

    def _matrices(self, d: Tensor, examples: slice) -> tuple[Tensor, Tensor]:
        """Returns `a` as [b, matrices, positions, inputs] and `d` as [b, matrices, positions, outputs]."""
        letters = self._letters()
        a = letters.as_matrices(of_examples(self.a, examples), letters.a, letters.inputs)
        return a, letters.as_matrices(of_examples(d, examples), letters.y, letters.outputs)

    def _sizes(self, d: Tensor) -> dict[str, int]:
        letters = self._letters()
        return {**dict(zip(letters.y, d.shape, strict=True)), **dict(zip(letters.a, self.a.shape, strict=True))}


@dataclasses.dataclass(frozen=True)
class Letters:
    """The letters of an equation by what they are for."""

    a: str
    w: str
    y: str

    @property
    def matrices(self) -> str:
        """Letters that input, kernel and output have."""
        return "".join(c for c in self.w if c in self.a and c in self.y)

    @property
    def inputs(self) -> str:
        """Letters over which input and kernel are summed."""
        return "".join(c for c in self.w if c in self.a and c not in self.y)

    @property
    def outputs(self) -> str:
        """Letters that the kernel brings into the output."""
        return "".join(c for c in self.w if c not in self.a)

    @property
    def positions(self) -> str:
        """Letters that input and output have and the kernel has not, the example's excepted."""
        return "".join(c for c in self.y[1:] if c not in self.w)

    def as_matrices(self, t: Tensor, letters: str, last: str) -> Tensor:
        """Returns a tensor of these letters as [b, matrices, positions, last]; other letters are summed."""
        alone = [i for i, c in enumerate(letters) if c not in letters[0] + self.matrices + self.positions + last]
        if alone:
            t = ops.sum(ops.cast(t, "float32"), axis=alone)
            letters = "".join(c for i, c in enumerate(letters) if i not in alone)
        groups = [letters[0], self.matrices, self.positions, last]
        order = [letters.index(c) for group in groups for c in group]
        t = t if order == sorted(order) else ops.transpose(t, order)
        sizes = dict(zip("".join(groups), static_or_dynamic_shape(t), strict=True))
        shape = [product([sizes[c] for c in group]) for group in groups]
        return ops.reshape(t, shape if self.matrices else [shape[0], *shape[2:]])

    def as_kernel(self, g: Tensor, sizes: dict[str, int], batched: bool) -> Tensor:
        """Contributions [b, (matrices,) inputs, outputs], or their sum without b, in the kernel's shape."""
        found = self.matrices + self.inputs + self.outputs
        lead = [static_or_dynamic_shape(g)[0]] if batched else []
        g = ops.reshape(g, [*lead, *(sizes[c] for c in found)])
        order = [found.index(c) + len(lead) for c in self.w]
        return ops.transpose(g, [0, *order] if batched else order)


def einsum_letters(equation: str, input_rank: int) -> tuple[str, str, str]:
    """Returns the letters of input, kernel and output of an EinsumDense equation, an ellipsis written out."""
    equation = equation.replace(" ", "")
    left, y_letters = equation.split("->")
    a_letters, w_letters = left.split(",")
    if "..." in a_letters:
        free = [c for c in string.ascii_uppercase if c not in equation]
        spelled = "".join(free[: input_rank - len(a_letters.replace("...", ""))])
        a_letters, y_letters = a_letters.replace("...", spelled), y_letters.replace("...", spelled)
    return a_letters, w_letters, y_letters


def refuse_einsum(layer: Any) -> str | None:
    """The equation must keep the examples first and apart, and sum the kernel only against input or output."""
    # Any rank will do that leaves an ellipsis some axes.
    a_letters, w_letters, y_letters = einsum_letters(layer.equation, len(layer.equation))
    if a_letters[0] != y_letters[0] or a_letters[0] in w_letters:
        return f"equation {layer.equation!r} does not keep the examples on the first axis"
    if set(w_letters) - set(a_letters) - set(y_letters):
        return f"equation {layer.equation!r} sums the kernel over an axis of its own"
    if any(len(set(letters)) < len(letters) for letters in (a_letters, w_letters, y_letters)):
        return f"equation {layer.equation!r} takes a diagonal"
    return refuse_lora(layer)


def einsum_dense(layer: Any, recorder: Recorder, inputs: Tensor, training: bool | None = None) -> Tensor:
    """Computes `y = activation(einsum(equation, x, W) + b)`."""
    y = ops.einsum(layer.equation, inputs, recorder.value(layer.kernel))
    y = recorder.record(layer.kernel, y, Einsum(inputs, layer.equation))
    if layer.bias is not None:
        y = add_bias(recorder, layer.bias, y, layer.bias.shape)
    return activate(layer, y)
