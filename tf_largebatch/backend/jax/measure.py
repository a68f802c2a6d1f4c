"""The measuring pass on JAX: one forward and backward pass that gives the gradient and every example's share of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tf_largebatch import keras_internals
from tf_largebatch.backend.jax.broadcast import Decisions, run
from tf_largebatch.backend.jax.dependence import depends_on_other_arrays
from tf_largebatch.backend.jax.inner_gradients import refusing_forward_mode
from tf_largebatch.backend.jax.pack import pack
from tf_largebatch.backend.jax.recorder import Arguments, Plan, Recorder
from tf_largebatch.backend.jax.scopes import InnerScope, assign, inner_scope
from tf_largebatch.backend.jax.small_sums import squares_and_sums
from tf_largebatch.backend.jax.structure import structure_of
from tf_largebatch.backend.jax.watch import Watch
from tf_largebatch.core.paths import variable_path
from tf_largebatch.norms.intercept import recording_checked_calls
from tf_largebatch.norms.measurement import Measurement
from tf_largebatch.norms.recorder import Structure, Use, Variable, unexplained_message, unrecorded_use_message
from tf_largebatch.norms.registry import Registry
from tf_largebatch.norms.structure import without_trace
from tf_largebatch.norms.uses import measure_uses


def measuring_pass(
    model: Any,
    layers: Sequence[Any],
    forward: Callable[[], Any],
    loss: Callable[[Any], Any],
    scale: Callable[[Any], Any],
    variables: Sequence[Variable],
    batch_size: int,
    registry: Registry,
    examples: int | None,
    replacements: Mapping[Any, Any],
) -> tuple[Any, Measurement]:
    """Runs the pass of `norms.measure`, by `jax.vjp`; `layers` are those that are measured."""
    measuring = _Pass(model, layers, forward, loss, scale, variables, batch_size, registry, replacements)
    measured = batch_size if examples is None else min(examples, batch_size)
    window = None if measured == batch_size else slice(0, measured)
    with refusing_forward_mode():
        plan = measuring.plan()
        arguments = Arguments.zeros(plan, batch_size, measured, measuring.trained)
        return measuring.run(plan, arguments, window, measured)


@dataclasses.dataclass
class _Pass:
    """One pass; the fields are the arguments of `measuring_pass`."""

    model: Any
    layers: Sequence[Any]
    forward: Callable[[], Any]
    loss: Callable[[Any], Any]
    scale: Callable[[Any], Any]
    variables: Sequence[Variable]
    batch_size: int
    registry: Registry
    replacements: Mapping[Any, Any]

    def __post_init__(self) -> None:
        self._known = {id(v) for v in self.variables}
        self._values = [v.value for v in self.variables]
        self._rebuilds: dict[int, Callable[..., Any]] = {}

    def trained(self, variable: Variable) -> bool:
        """Returns whether a variable is differentiated."""
        return id(variable) in self._known

    def plan(self) -> Plan:
        """Traces the forward pass, which runs nothing, and returns what it found."""
        found: list[Plan] = []

        def trace() -> None:
            with inner_scope(collect_losses=True) as scope:
                recorder = Recorder(scope, self.batch_size, self.trained)
                self._forward(recorder, checks=True)
            found.append(recorder.found)

        with without_trace(self.model):
            jax.eval_shape(trace)
        return found[0]

    def run(self, plan: Plan, arguments: Arguments, window: slice | None, measured: int) -> tuple[Any, Measurement]:
        """Runs forward and backward pass."""
        recorders: list[Recorder] = []
        assigned: list[Any] = []
        in_forward, in_loss = Watch(), Watch()

        def target(arguments: Arguments, of_forward: list[jax.Array], of_loss: list[jax.Array]) -> Any:
            guarded = [in_forward(v, value) for v, value in zip(self.variables, of_forward, strict=True)]
            with inner_scope(zip(self.variables, guarded, strict=True), collect_losses=True) as scope:
                recorder = Recorder(scope, self.batch_size, self.trained, plan, arguments, window)
                recorder.structure = self._structure
                recorders.append(recorder)
                output, held = self._outputs(recorder, scope)
                changed = {id(v) for v in scope.assigned}
                for v, value in zip(self.variables, of_loss, strict=True):
                    current = scope.get_current_value(v)
                    if id(v) in changed:  # a rule has assigned it, as spectral normalization does
                        value = jax.lax.stop_gradient(current) + (value - jax.lax.stop_gradient(value))
                    scope.replace(v, in_loss(v, value))
                unscaled = self.loss(output)
                scaled = jnp.sum(self.scale(unscaled))
                assigned[:] = scope.assigned
                return scaled, (output, unscaled, scope.changes(), held)

        scaled, backward, (output, unscaled, changes, held) = jax.vjp(
            target, arguments, self._values, self._values, has_aux=True
        )
        recorder = recorders[-1]
        recorder.inner_gradients.end_forward_pass()
        d, _, d_loss = backward(jnp.ones_like(scaled))
        recorder.inner_gradients.check()
        self._refuse(in_forward.seen)
        if in_loss.seen:
            self._check_loss(in_loss.seen, output, plan, arguments, window)
        assign(assigned, changes)
        measurement = self._assembled(recorder, d, d_loss, in_loss, held, measured, window)
        return output, dataclasses.replace(measurement, loss=unscaled)

    def _forward(self, recorder: Recorder, checks: bool) -> Any:
        def structure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Structure:
            if checks:
                self._structure = structure_of(
                    self.model, self.layers, self.registry, self.replacements, self.batch_size, args, kwargs
                )
            return self._structure

        with recording_checked_calls(self.model, self.layers, self.registry, recorder, self.replacements, structure):
            return self.forward()

    def _outputs(self, recorder: Recorder, scope: InnerScope) -> tuple[Any, dict[int, list[jax.Array]]]:
        """Returns the forward pass; and what the contractions of the probed uses hold, by the uses' numbers."""
        if not self._structure.broadcasts:
            return self._forward(recorder, checks=False), self._held(recorder)
        trees: list[Any] = []
        assigned: list[Any] = []
        losses: list[Any] = []

        def function() -> Any:
            with inner_scope(collect_losses=True) as inside:
                recorder.scope = inside
                output = self._forward(recorder, checks=False)
            leaves, tree = jax.tree_util.tree_flatten(output)
            trees.append(tree)
            assigned[:], losses[:] = inside.assigned, inside.losses
            return leaves, inside.changes(), inside.losses, self._held(recorder)

        closed, shapes = jax.make_jaxpr(function, return_shape=True)()
        decide = Decisions(None, self._structure.broadcasts[0])
        flat = run(closed.jaxpr, closed.consts, self.batch_size, decide, recorder.repeated)
        leaves, changes, new_losses, held = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), flat)
        recorder.scope = scope
        assign(assigned, changes)
        keras_internals.add_losses_again(self.model, losses, new_losses)
        return jax.tree_util.tree_unflatten(trees[0], leaves), {**held, **recorder.held}

    def _held(self, recorder: Recorder) -> dict[int, list[jax.Array]]:
        held: dict[int, list[jax.Array]] = {}
        for use in recorder.uses:
            if use.contraction is not None and recorder.is_probed(use):
                arrays, self._rebuilds[use.number] = pack(use.contraction)
                if use.number not in recorder.tables:
                    held[use.number] = arrays
        return held

    def _again(self, use: Use, held: Mapping[int, list[jax.Array]]) -> Any:
        """Returns the contraction of a probed use, with the arrays that left the differentiated function."""
        return None if use.contraction is None else self._rebuilds[use.number](held[use.number])

    def _refuse(self, seen: Mapping[int, Variable]) -> None:
        """Raises if the loss depends on a variable that the forward pass read past the rules."""
        if seen:
            raise ValueError(unrecorded_use_message([variable_path(v) for v in self.variables if id(v) in seen]))

    def _check_loss(
        self, seen: Mapping[int, Variable], output: Any, plan: Plan, arguments: Arguments, window: slice | None
    ) -> None:
        """Raises if the loss uses one of the variables that it reads otherwise than in a term of weights alone."""
        read = [i for i, v in enumerate(self.variables) if id(v) in seen]

        def gradients() -> list[jax.Array]:
            def target(values: list[jax.Array]) -> jax.Array:
                own = list(zip((self.variables[i] for i in read), values, strict=True))
                with inner_scope(collect_losses=True) as scope:
                    recorder = Recorder(scope, self.batch_size, self.trained, plan, arguments, window)
                    recorder.structure = self._structure
                    found = jax.lax.stop_gradient(self._outputs(recorder, scope)[0])
                    for v, value in own:
                        scope.replace(v, value)
                    return jnp.sum(self.scale(self.loss(found)))

            return jax.grad(target)([self._values[i] for i in read])

        wrong = depends_on_other_arrays(gradients, self._values)
        refused = [self.variables[i] for i, is_wrong in zip(read, wrong, strict=True) if is_wrong]
        self._refuse({id(v): v for v in refused})

    def _assembled(
        self,
        recorder: Recorder,
        d: Arguments,
        d_loss: list[jax.Array],
        in_loss: Watch,
        held: Mapping[int, list[jax.Array]],
        measured: int,
        window: slice | None,
    ) -> Measurement:
        """Returns the gradient and the norms of each variable."""
        uses_of: dict[int, list[Use]] = {}
        for use in recorder.uses:
            if use.number in recorder.reached and self.trained(use.variable):
                uses_of.setdefault(id(use.variable), []).append(use)
        self._check_explained(recorder, uses_of)
        small_sums = squares_and_sums({n: g for n, g in d.contributions.items() if n in recorder.reached}, window)
        gradients, squared_norms = [], []
        for i, variable in enumerate(self.variables):
            uses = uses_of.get(id(variable), [])
            shares: list[jax.Array] = []
            squares = None
            probed = [use for use in uses if use.number in d.probes]
            if probed:
                together = measure_uses(
                    [
                        (dataclasses.replace(use, contraction=self._again(use, held)), d.probes[use.number])
                        for use in probed
                    ],
                    window,
                )
                squares, shares = together.squares, list(together.gradients)
                private_values = {
                    id(use.private_value): use for use in probed if id(use.private_value) not in together.replaced
                }
                shares += [
                    jnp.sum(d.probes[use.number].astype(jnp.float32), axis=0)
                    if use.contraction is None
                    else d.private_values[use.private_value.number]
                    for use in private_values.values()
                ]
            else:
                for use in uses:  # one
                    if use.number in small_sums:
                        squares, share = small_sums[use.number]
                        shares.append(share)
                        continue
                    squares = d.squares[use.number]
                    own = use.number in recorder.with_share
                    shares.append(d.shares[use.number] if own else d.private_values[use.private_value.number])
            if id(variable) in in_loss.seen:
                shares.append(d_loss[i])
            total = None
            for share in shares:
                share = share.astype(variable.dtype)
                total = share if total is None else total + share
            gradients.append(total)
            squared_norms.append(squares)
        return Measurement(gradients, squared_norms, measured, self.batch_size)

    def _check_explained(self, recorder: Recorder, uses_of: Mapping[int, list[Use]]) -> None:
        """Raises if the loss depends on a private value otherwise than through the tensors recorded for it."""
        explained = {id(use.private_value) for uses in uses_of.values() for use in uses}
        lost = [
            private_value
            for private_value in recorder.private_values
            if private_value.reached and id(private_value) not in explained
        ]
        if lost:
            raise ValueError(unexplained_message([variable_path(private_value.variable) for private_value in lost]))
