"""The equations of the recurrent cells. Every use of a variable is recorded at a tensor outside the loop over time.

A *site* is a pre-activation of all time steps, [B, T, ..., P], computed before the loop. In the loop, step t adds the
part that depends on the state. So the gradient `d` at the site is the gradient at the complete pre-activation.
The recurrent kernel U is used in the loop only, and `G_i = sum_t h_{i,t-1} (x) d_{i,t}`: its contraction receives the
states after the loop. At masked steps the state is carried over and `d` is zero.
"""

from __future__ import annotations

from typing import Any

from keras import layers as L
from keras import ops

from tf_largebatch.norms.overrides import overridden_method, reached_methods
from tf_largebatch.norms.recorder import Contraction, Recorder
from tf_largebatch.norms.rules.bias import Bias
from tf_largebatch.norms.rules.combinators import ByGate, Deferred, RowOf, WithoutFirstAxis
from tf_largebatch.norms.rules.convolution import Convolution, Window
from tf_largebatch.norms.rules.dense import MatMul
from tf_largebatch.norms.shapes import static_or_dynamic_shape

Operand = Any  # a tensor, or a list of one for each gate


class SimpleRNNRule:
    """`h = activation(x W + b + h' U)`."""

    emits_reset = False

    def __init__(self, cell: Any, recorder: Recorder, training: bool | None) -> None:
        self.cell, self.recorder, self.training = cell, recorder, training
        self.kernel = recorder.value(cell.kernel, cell.compute_dtype)
        self.recurrent_kernel = recorder.value(cell.recurrent_kernel, cell.compute_dtype)
        self.bias = recorder.value(cell.bias, cell.compute_dtype) if cell.use_bias else None
        self._in_loop: Deferred | None = None
        self._recurrent = Deferred()

    def sites(self, x: Any, like: Any) -> list[Any]:
        """Returns the recorded sites. They contain `x W` if the inputs of all steps are known before the loop.

        Args:
            x: The inputs of all steps, [B, (T,) ...], or None.
            like: A tensor with the leading axes of x; x itself where it is known.
        """
        cell, recorder = self.cell, self.recorder
        if x is not None:
            operand = self.dropped_inputs(x)
            z = self.product(operand, self.kernel, self.input_product)
            z = recorder.record(cell.kernel, z, self.contraction(operand, self.input_contraction))
        else:
            self._in_loop = Deferred()
            z = recorder.probe([*static_or_dynamic_shape(like)[:-1], cell.kernel.shape[-1]], cell.compute_dtype)
            z = recorder.record(cell.kernel, z, self._in_loop)
        return self.recurrent_sites(self.with_bias(z, 0))

    def recurrent_sites(self, z: Any) -> list[Any]:
        """Returns the sites at which the recurrent kernel is recorded, z among them."""
        return [self.recorder.record(self.cell.recurrent_kernel, z, self._recurrent)]

    def step(self, sites: list[Any], x: Any, states: list[Any]) -> tuple[Any, Any, Any]:
        """Runs one time step: returns the output, the new states, and the reset gate where the cell has to emit it."""
        h = self.cell.activation(self.input_term(sites[0], x) + self.recurrent_term(states[0]))
        return h, [h], None

    def resolve(self, x: Any, h: Any, reset: Any) -> None:
        """Completes the contractions with the inputs, previous states and reset gates of all steps."""
        if self._in_loop is not None:
            self._in_loop.inner = self.contraction(self.dropped_inputs(x), self.input_contraction)
        self._recurrent.inner = self.contraction(self.recurrent_operand(h, reset), self.recurrent_contraction)

    def recurrent_operand(self, h: Any, reset: Any) -> Operand:
        """Returns what the recurrent kernel is multiplied with."""
        del reset
        return self.dropped_states(h)

    def input_term(self, site: Any, x: Any) -> Any:
        """Returns `x W + b` of one step."""
        if self._in_loop is None:
            return site
        return site + self.product(self.dropped_inputs(x), self.kernel, self.input_product)

    def recurrent_term(self, h: Any) -> Any:
        """Returns `h' U` of one step."""
        return self.product(self.dropped_states(h), self.recurrent_kernel, self.recurrent_product)

    def with_bias(self, z: Any, row: int) -> Any:
        """Returns `z + b`, recorded; `b` is the row of that number where the bias has several."""
        if self.bias is None:
            return z
        shape = tuple(self.cell.bias.shape)
        contraction: Contraction = Bias(shape[-1:], (1,) * (len(z.shape) - 1) + shape[-1:])
        if len(shape) > 1:
            contraction = RowOf(contraction, row, shape[0])
        return self.recorder.record(self.cell.bias, z + (self.bias if len(shape) == 1 else self.bias[row]), contraction)

    def dropped_inputs(self, x: Any) -> Operand:
        """Returns the inputs times the dropout mask, which may differ between the gates."""
        if not self.drops(self.cell.dropout):
            return x
        return self._dropped(x, self.cell.get_dropout_mask(x))

    def dropped_states(self, h: Any) -> Operand:
        """Returns the states times the recurrent dropout mask, which may differ between the gates."""
        if not self.drops(self.cell.recurrent_dropout):
            return h
        return self._dropped(h, self.cell.get_recurrent_dropout_mask(h))

    def drops(self, rate: float) -> bool:
        """Returns whether there is dropout of this rate."""
        return bool(self.training) and rate > 0.0

    @staticmethod
    def _dropped(a: Any, mask: Operand) -> Operand:
        masks = mask if isinstance(mask, list) else [mask]
        masks = [m if len(m.shape) == len(a.shape) else m[:, None] for m in masks]
        dropped = [a * m for m in masks]
        return dropped if isinstance(mask, list) else dropped[0]

    @staticmethod
    def product(a: Operand, w: Any, product: Any) -> Any:
        """Returns `a w`, gate by gate if each has its own a."""
        if not isinstance(a, list):
            return product(a, w)
        by_gate = zip(a, ops.split(w, len(a), axis=-1), strict=True)
        return ops.concatenate([product(a_g, w_g) for a_g, w_g in by_gate], axis=-1)

    @staticmethod
    def contraction(a: Operand, contraction: Any) -> Contraction:
        """Returns the contraction of `product`."""
        return ByGate(tuple(contraction(a_g) for a_g in a)) if isinstance(a, list) else contraction(a)

    def input_product(self, x: Any, w: Any) -> Any:
        """Returns `x w`."""
        return ops.matmul(x, w)

    def recurrent_product(self, h: Any, w: Any) -> Any:
        """Returns `h w`."""
        return ops.matmul(h, w)

    def input_contraction(self, x: Any) -> Contraction:
        """Returns the contraction of `input_product`."""
        return MatMul(x)

    def recurrent_contraction(self, h: Any) -> Contraction:
        """Returns the contraction of `recurrent_product`."""
        return MatMul(h)


class LSTMRule(SimpleRNNRule):
    """`[i, f, g, o] = x W + b + h' U`, `c = s(f) c' + s(i) activation(g)`, `h = s(o) activation(c)`."""

    def drops(self, rate: float) -> bool:
        """Returns whether there is dropout of this rate; these cells treat a rate of 1 as no dropout."""
        return super().drops(rate) and rate < 1.0

    def step(self, sites: list[Any], x: Any, states: list[Any]) -> tuple[Any, Any, Any]:
        """Computes one time step."""
        activation, gate = self.cell.activation, self.cell.recurrent_activation
        z = self.input_term(sites[0], x) + self.recurrent_term(states[0])
        i, f, g, o = ops.split(z, 4, axis=-1)
        c = gate(f) * states[1] + gate(i) * activation(g)
        h = gate(o) * activation(c)
        return h, [h, c], None


class ConvLSTMRule(LSTMRule):
    """An LSTM whose products are convolutions, channels last."""

    def input_product(self, x: Any, w: Any) -> Any:
        """Returns the inputs' convolution, of one step or of all."""
        cell, shape = self.cell, static_or_dynamic_shape(x)
        one_step = len(x.shape) == cell.rank + 2
        y = ops.conv(
            x if one_step else ops.reshape(x, [-1, *shape[2:]]),
            w,
            strides=cell.strides,
            padding=cell.padding,
            data_format=cell.data_format,
            dilation_rate=cell.dilation_rate,
        )
        return y if one_step else ops.reshape(y, [*shape[:2], *static_or_dynamic_shape(y)[1:]])

    def recurrent_product(self, h: Any, w: Any) -> Any:
        """Returns the states' convolution."""
        return ops.conv(h, w, strides=1, padding="same", data_format=self.cell.data_format)

    def input_contraction(self, x: Any) -> Contraction:
        """Returns a convolution over space and time whose kernel has size 1 in time."""
        cell = self.cell
        window = Window((1, *cell.kernel_size), (1, *cell.strides), cell.padding, (1, *cell.dilation_rate))
        return WithoutFirstAxis(Convolution(x, window, groups=1))

    def recurrent_contraction(self, h: Any) -> Contraction:
        """Returns a convolution over space and time whose kernel has size 1 in time."""
        ones = (1,) * (self.cell.rank + 1)
        window = Window((1, *self.cell.kernel_size), ones, "same", ones)
        return WithoutFirstAxis(Convolution(h, window, groups=1))


class GRURule(LSTMRule):
    """`z, r = s(x W_zr + h' U_zr)`, `g = activation(x W_g + r (h' U_g))`, `h = z h' + (1 - z) g`, biases left out.

    With `reset_after` the products `h' U + b` are a site of their own: r scales what reaches them. Without, the
    candidate's product is `(r h') U_g`, whose operand is known only in the loop.
    """

    def __init__(self, cell: Any, recorder: Recorder, training: bool | None) -> None:
        super().__init__(cell, recorder, training)
        self.emits_reset = not cell.reset_after

    def recurrent_sites(self, z: Any) -> list[Any]:
        """Returns one site for both products, or one for each with `reset_after`."""
        if not self.cell.reset_after:
            return super().recurrent_sites(z)
        inner = self.recorder.probe(static_or_dynamic_shape(z), z.dtype)
        return [z, *super().recurrent_sites(self.with_bias(inner, 1))]

    def step(self, sites: list[Any], x: Any, states: list[Any]) -> tuple[Any, Any, Any]:
        """Computes one time step."""
        cell, h = self.cell, states[0]
        gate = cell.recurrent_activation
        x_z, x_r, x_g = ops.split(self.input_term(sites[0], x), 3, axis=-1)
        if cell.reset_after:
            h_z, h_r, h_g = ops.split(sites[1] + self.recurrent_term(h), 3, axis=-1)
            z, r = gate(x_z + h_z), gate(x_r + h_r)
            candidate = cell.activation(x_g + r * h_g)
        else:
            u_z, u_r, u_g = ops.split(self.recurrent_kernel, 3, axis=-1)
            for_z, for_r, for_g = self._by_gate(h)
            z, r = gate(x_z + ops.matmul(for_z, u_z)), gate(x_r + ops.matmul(for_r, u_r))
            candidate = cell.activation(x_g + ops.matmul(r * for_g, u_g))
        h = z * h + (1 - z) * candidate
        return h, [h], r if self.emits_reset else None

    def recurrent_operand(self, h: Any, reset: Any) -> Operand:
        """Returns the previous states; those of the candidate reset where the cell resets before it multiplies."""
        if self.cell.reset_after:
            return self.dropped_states(h)
        for_z, for_r, for_g = self._by_gate(h)
        return [for_z, for_r, reset * for_g]

    def _by_gate(self, h: Any) -> list[Any]:
        dropped = self.dropped_states(h)
        return dropped if isinstance(dropped, list) else [dropped] * 3


_RULES = {L.SimpleRNNCell: SimpleRNNRule, L.LSTMCell: LSTMRule, L.GRUCell: GRURule}


def cell_rule(cell: Any) -> type[SimpleRNNRule] | None:
    """Returns the rule of a cell whose equations are known: one of Keras's, with no method overridden."""
    for cls, rule in _RULES.items():
        if isinstance(cell, cls):
            return rule if overridden_method(type(cell), cls, reached_methods(cls)) is None else None
    return None
