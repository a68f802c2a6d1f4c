"""The recorder on JAX: norms leave the backward pass as the cotangents of dummy arguments.

A recorded tensor passes an identity with a backward pass of its own (`jax.custom_vjp`). There `d = dLoss/dy` arrives,
together with what the contraction holds, and the squared norms go out as the "gradient" of a dummy argument of shape
[b], and the use's share of the gradient, where it comes with the norms, as that of a dummy of the variable's shape. The
program is the ordinary backward pass with the norms at their place in it, so that nothing is kept until the end.

A variable that is used several times needs all its `d` at once, and so does a contraction that is completed only after
the forward pass. Such uses add a *probe*, zeros of the tensor's shape that are an argument of the differentiated
function: its gradient is `d`. Which uses these are, and the probes' shapes, is found by a trace of the forward pass
(`Plan`) that runs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tf_largebatch.backend.jax.broadcast import table_p
from tf_largebatch.backend.jax.distribution import is_spread_over_devices
from tf_largebatch.backend.jax.inner_gradients import InnerGradients
from tf_largebatch.backend.jax.pack import pack
from tf_largebatch.backend.jax.scopes import InnerScope
from tf_largebatch.backend.jax.small_sums import are_small_sums
from tf_largebatch.backend.jax.watch import watched
from tf_largebatch.norms import recorder as base
from tf_largebatch.norms.device import device
from tf_largebatch.norms.recorder import Contraction, Use, Variable, broadcast_message
from tf_largebatch.norms.shapes import Size
from tf_largebatch.norms.uses import PerExample, measure_uses


@dataclasses.dataclass
class Plan:
    """What a trace of the forward pass has found.

    Attributes:
        private_values: The variable of each private value, in order.
        variables: The variable of each use, in order.
        outputs: Shape and dtype of each use's recorded tensor.
        complete: Whether each use's contraction was complete when it was recorded.
        sums: Whether each use's contributions are small sums over positions, see `sums.are_small_sums`.
    """

    private_values: list[Variable] = dataclasses.field(default_factory=list)
    variables: list[Variable] = dataclasses.field(default_factory=list)
    outputs: list[jax.ShapeDtypeStruct] = dataclasses.field(default_factory=list)
    complete: list[bool] = dataclasses.field(default_factory=list)
    sums: list[bool] = dataclasses.field(default_factory=list)

    def is_probed(self, number: int) -> bool:
        """Returns whether the use of this number is seen by a probe."""
        of_variable = sum(v is self.variables[number] for v in self.variables)
        return of_variable > 1 or not self.complete[number]


@dataclasses.dataclass
class Arguments:
    """The dummy arguments of the differentiated function; all are zeros.

    Attributes:
        private_values: For each, in order, zeros that are added to it: their gradient is its ordinary one.
        squares: For each use that is not probed zeros [b].
        shares: For each use that is not probed zeros of the variable's shape.
        contributions: In place of these two, for each use with small sums, zeros [B, *variable's shape].
        probes: For each probed use zeros of its tensor's shape and dtype.
    """

    private_values: list[jax.Array]
    squares: dict[int, jax.Array]
    shares: dict[int, jax.Array]
    contributions: dict[int, jax.Array]
    probes: dict[int, jax.Array]

    @classmethod
    def zeros(cls, plan: Plan, batch_size: int, measured: int, trained: Callable[[Variable], bool]) -> Arguments:
        """Returns the arguments for a plan, with `measured` examples; variables that are not trained have none."""
        uses = [n for n, variable in enumerate(plan.variables) if trained(variable)]
        sums = [n for n in uses if not plan.is_probed(n) and plan.sums[n]]
        inline = [n for n in uses if not plan.is_probed(n) and not plan.sums[n]]
        return cls(
            [jnp.zeros(v.shape if trained(v) else (), v.dtype) for v in plan.private_values],
            {n: jnp.zeros(measured) for n in inline},
            {n: jnp.zeros(plan.variables[n].shape) for n in inline},
            {n: jnp.zeros((batch_size, *plan.variables[n].shape)) for n in sums},
            {n: jnp.zeros(plan.outputs[n].shape, plan.outputs[n].dtype) for n in uses if plan.is_probed(n)},
        )


jax.tree_util.register_dataclass(Arguments, ["private_values", "squares", "shares", "contributions", "probes"], [])


@dataclasses.dataclass(eq=False)
class PrivateValue:
    """What a layer computes with in place of one variable.

    Attributes:
        variable: What it is the value of.
        number: Its place among the private values of a pass.
        reached: Whether the backward pass has reached it.
    """

    variable: Variable
    number: int
    reached: bool = False

    def on_gradient(self) -> None:
        """Notes that the backward pass has reached it."""
        self.reached = True


class Recorder(base.Recorder):
    """Records the uses of variables during one forward pass of a batch.

    Args:
        scope: The scope in which the pass runs, whose trained variables have guarded values.
        batch_size: Number of examples B.
        trained: Tells whether a variable is among those differentiated.
        plan: What a first trace has found; None in that trace, which measures nothing.
        arguments: The dummy arguments; None in the first trace.
        window: The measured examples; None for all.
        checks_structure: Whether this is the forward pass of the structure check.
    """

    def __init__(
        self,
        scope: InnerScope,
        batch_size: int,
        trained: Callable[[Variable], bool],
        plan: Plan | None = None,
        arguments: Arguments | None = None,
        window: slice | None = None,
        checks_structure: bool = False,
    ) -> None:
        super().__init__(batch_size, checks_structure)
        self.inner_gradients = InnerGradients()
        self.found = Plan()
        self.private_values: list[PrivateValue] = []
        self.reached: set[int] = set()  # the uses that the backward pass has reached
        self.with_share: set[int] = set()  # those whose share of the gradient replaces the ordinary one
        self.scope = scope
        self.tables: dict[int, tuple[Use, Callable[..., Any]]] = {}  # the uses without a batch axis
        self.held: dict[int, list[jax.Array]] = {}  # what their contractions hold, once the program has run
        self._trained, self._plan, self._arguments = trained, plan, arguments
        self._window = window
        self._last_private_value: dict[int, PrivateValue] = {}
        self._results: list[jax.Array] = []  # of the layer before, in the order of the backward pass

    def value(self, variable: Variable, dtype: Any = None) -> jax.Array:
        """Returns the variable's value without its gradient, plus a dummy argument that has it instead."""
        self._check_is_variable(variable)
        private_value = PrivateValue(variable, len(self.private_values))
        self.found.private_values.append(variable)
        self.private_values.append(private_value)
        self._last_private_value[id(variable)] = private_value
        if self._arguments is None or not self._trained(variable):
            return self._read(variable, dtype, None)
        return self._read(
            variable, dtype, watched(self._arguments.private_values[private_value.number], private_value.on_gradient)
        )

    def unseen(self) -> contextlib.AbstractContextManager[None]:
        """Private values have no gradient of the variable here, wherever it is read."""
        return contextlib.nullcontext()

    def probe(self, shape: Sequence[Size], dtype: Any) -> jax.Array:
        """Returns zeros."""
        return jnp.zeros(shape, dtype)

    def record(self, variable: Variable, output: jax.Array, contraction: Contraction) -> jax.Array:
        """Notes the use and returns the output, behind an identity or with a probe added."""
        self._check_batch_axis(variable, output)
        use = self._add_use(variable, output, self._last_private_value[id(variable)], self._fold(contraction))
        return self._seen(use, output)

    def record_broadcast(self, variable: Variable, output: jax.Array, contraction: Contraction) -> jax.Array:
        """Notes the use and returns the output behind a mark, which `broadcast.run` replaces."""
        if self._rows_per_example is not None:
            raise ValueError(broadcast_message([self._path()]))
        use = self._add_use(variable, output, self._last_private_value[id(variable)], contraction)
        repeated = jax.ShapeDtypeStruct((self.batch_size, *output.shape), output.dtype)
        self._note(use, repeated)
        held, rebuild = pack(contraction)
        self.tables[use.number] = use, rebuild
        return table_p.bind(output, *held, number=use.number, layer=self._path())

    def is_probed(self, use: Use) -> bool:
        """Returns whether a use is seen by a probe."""
        return self._arguments is not None and use.number in self._arguments.probes

    def repeated(self, number: int, value: jax.Array, held: list[jax.Array]) -> jax.Array:
        """Returns the output of a use without a batch axis repeated for each example, recorded there: [B, *shape]."""
        use, rebuild = self.tables[number]
        self.held[number] = held
        use = dataclasses.replace(use, contraction=rebuild(held))
        return self._connected(use, jnp.broadcast_to(value, (self.batch_size, *value.shape)))

    def per_example(self, variable: Variable, dtype: Any = None) -> jax.Array:
        """Returns the variable repeated for each example, private value and recorded tensor in one."""
        self._check_is_variable(variable)
        rows = self._rows_per_example
        examples = self.batch_size if rows is None else self.batch_size // rows
        value = self._read(variable, dtype, None)
        wide = value.astype(jnp.float32) if value.dtype.itemsize < 4 else value
        repeated = jnp.broadcast_to(wide, (examples, *variable.shape))
        use = self._add_use(variable, repeated, PrivateValue(variable, -1), None)
        repeated = self._seen(use, repeated)
        if rows is not None:
            by_row = jnp.broadcast_to(repeated[:, None], (examples, rows, *variable.shape))
            repeated = by_row.reshape(examples * rows, *variable.shape)
        return repeated.astype(value.dtype)

    def guard(self, outputs: Any, layer: str) -> Any:
        """Returns the outputs behind a guard of `InnerGradients`."""
        return self.inner_gradients.guard(outputs, layer)

    def _read(self, variable: Variable, dtype: Any, dummy: jax.Array | None) -> jax.Array:
        """Returns the variable's value in the layer's compute dtype or in `dtype`; only the dummy gets a gradient."""
        guarded = self.scope.get_current_value(variable)
        value = jax.lax.stop_gradient(variable.value if guarded is None else guarded)
        self.scope.replace(variable, value if dummy is None else value + dummy)
        try:
            value = variable.value  # cast by Keras as the layer wants it
        finally:
            if guarded is None:
                self.scope.state_mapping.pop(id(variable))
            else:
                self.scope.replace(variable, guarded)
        return value if dtype is None else value.astype(dtype)

    def _seen(self, use: Use, output: jax.Array) -> jax.Array:
        self._note(use, jax.ShapeDtypeStruct(output.shape, output.dtype))
        return self._connected(use, output)

    def _note(self, use: Use, output: jax.ShapeDtypeStruct) -> None:
        self.found.variables.append(use.variable)
        self.found.outputs.append(output)
        self.found.complete.append(_is_complete(use.contraction))
        self.found.sums.append(are_small_sums(use))

    def _connected(self, use: Use, output: jax.Array) -> jax.Array:
        """Returns the recorded tensor behind what sees its gradient."""
        if self._arguments is None or self._plan is None or not self._trained(use.variable):
            return output
        if use.number in self._arguments.probes:
            return output + watched(self._arguments.probes[use.number], lambda: self.reached.add(use.number))
        if use.number in self._arguments.contributions:
            return self._summed_in_the_backward_pass(use, output, self._arguments.contributions[use.number])
        return self._measured_in_the_backward_pass(use, output)

    def _summed_in_the_backward_pass(self, use: Use, output: jax.Array, slot: jax.Array) -> jax.Array:
        """Returns the recorded tensor; the contributions [B, *variable's shape] leave as the gradient of `slot`."""

        @jax.custom_vjp
        def seen(y: jax.Array, slot: jax.Array) -> jax.Array:
            return y

        def forward(y: jax.Array, slot: jax.Array) -> Any:
            return y, None

        def backward(_: None, d: jax.Array) -> Any:
            if self.inner_gradients.in_forward_pass:
                return d, jnp.zeros(slot.shape)
            self.reached.add(use.number)
            d = self._after_the_layer_before(use, d)
            contraction = PerExample() if use.contraction is None else use.contraction
            found = contraction.contributions(d, slice(None)).reshape(slot.shape)
            self._results.append(found)
            return d, found

        seen.defvjp(forward, backward)
        return seen(output, slot)

    def _measured_in_the_backward_pass(self, use: Use, output: jax.Array) -> jax.Array:
        arrays, rebuild = pack(use.contraction)
        shape = tuple(use.variable.shape)

        @jax.custom_vjp
        def seen(y: jax.Array, squares: jax.Array, share: jax.Array, arrays: list[jax.Array]) -> jax.Array:
            return y

        def forward(y: jax.Array, squares: jax.Array, share: jax.Array, arrays: list[jax.Array]) -> Any:
            return y, arrays

        def backward(arrays: list[jax.Array], d: jax.Array) -> Any:
            if self.inner_gradients.in_forward_pass:
                return d, jnp.zeros(slots[0].shape), jnp.zeros(shape), None
            self.reached.add(use.number)
            d = self._after_the_layer_before(use, d)
            found = measure_uses([(dataclasses.replace(use, contraction=rebuild(arrays)), d)], self._window)
            self._hold_up_the_next_layer(found.squares, found.gradients)
            share = jnp.zeros(shape)
            if found.gradients:
                self.with_share.add(use.number)
                share = found.gradients[0].astype(jnp.float32)
            return d, found.squares, share, None

        seen.defvjp(forward, backward)
        assert self._arguments is not None  # the caller has checked
        slots = self._arguments.squares[use.number], self._arguments.shares[use.number]
        return seen(output, *slots, arrays)

    def _hold_up_the_next_layer(self, squares: jax.Array, gradients: Sequence[jax.Array]) -> None:
        """Notes what the next layer of the backward pass waits for; see `_after_the_layer_before`.

        Not for gradients where several devices share the batch: their sums over the devices would then be made one
        after the other, each by itself, where the compiler makes one of them all.
        """
        self._results += [squares] if is_spread_over_devices() else [squares, *gradients]

    def _after_the_layer_before(self, use: Use, d: jax.Array) -> jax.Array:
        """Returns `d` behind a barrier, where it waits for the norms of the layer before it in the backward pass.

        Otherwise XLA puts the norms off until the end of the step, and every layer's input and `d` stay in memory. The
        layer's kernel waits. Its bias does not, because XLA fuses the sums for it with what computes `d`.
        """
        first = min(other.number for other in self.uses if other.layer_call == use.layer_call)
        if device() == "cpu" or use.number != first or not self._results:
            return d
        before, self._results = self._results, []
        return jax.lax.optimization_barrier((d, *before))[0]


def _is_complete(contraction: Any) -> bool:
    """Returns whether a contraction has all its fields, those of contractions in it included."""
    if not dataclasses.is_dataclass(contraction):
        inside = contraction if isinstance(contraction, (list, tuple)) else ()
        return all(_is_complete(one) for one in inside)
    fields = [field.name for field in dataclasses.fields(contraction)]
    return all(hasattr(contraction, name) and _is_complete(getattr(contraction, name)) for name in fields)
