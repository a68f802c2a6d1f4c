"""The training step: forward and backward passes over the streams of a batch, added up. For both Keras worlds.

A *stream* is a view of the batch: the clean images, their adversarial images, an augmented view. The loss of a step is

    L = sum over streams of  weight * (mean loss of the stream)

and every example of every stream is an example of its own, so that gradients and per-example norms add up over the
streams as they add up over micro-batches:

    for each micro-batch:  for each stream:  one forward and one backward pass  (`run_pass`)

Plain training is the case of one stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras import ops

from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.core.rates import l2_norm
from tf_largebatch.norms import Registry, measure
from tf_largebatch.norms.intercept import intercept
from tf_largebatch.norms.shapes import Size
from tf_largebatch.training.differentiate import dense, run_after, value_and_gradients
from tf_largebatch.training.micro_batches import MicroBatches


@dataclasses.dataclass(frozen=True)
class Stream:
    """A view of the batch and what computes it.

    Attributes:
        inputs: Nested tensors with the examples on axis 0.
        name: Its name in logs.
        weight: Factor of its loss, a float or a scalar tensor.
        network: The network that it goes through, where each stream has its own (tf_keras).
        replacements: Layers to call in place of the network's, where the streams share it (Keras 3): auxiliary batch
            norms.
    """

    inputs: Any
    name: str = ""
    weight: Any = 1.0
    network: Any = None
    replacements: Mapping[Any, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Pass:
    """What forward and backward passes give. Everything averages over equal parts of a batch.

    Attributes:
        losses: Each stream's unscaled and unweighted loss, float32 [S].
        variables: The K variables that were differentiated.
        gradients: For each variable its gradient, or None where the loss does not depend on it.
        norms: `sum_i ||G_i||` for each variable; None where none was measured.
        mean_squares: For the K variables the mean of the squared norms of the examples' own gradients, float32 [K], or
            None where it was not asked for.
        outputs: The network's outputs for each stream.
    """

    losses: Any
    variables: list[Any]
    gradients: list[Any]
    norms: GradientNorms | None
    mean_squares: Any = None
    outputs: Sequence[Any] = ()


@dataclasses.dataclass(frozen=True)
class Measuring:
    """How per-example norms are measured in a pass.

    Attributes:
        model: The model whose layers are measured.
        registry: The layer rules.
        examples: How many examples to measure, the first ones; None for all.
        mean_squares: Whether to return `Pass.mean_squares`.
    """

    model: Any
    registry: Registry
    examples: int | None = None
    mean_squares: bool = False


def run_pass(
    forward: Callable[[], Any],
    loss: Callable[[Any], Any],
    scale: Callable[[Any], Any],
    variables: Sequence[Any],
    batch_size: Size,
    measuring: Measuring | None = None,
    replacements: Mapping[Any, Any] | None = None,
) -> Pass:
    """Runs one forward and one backward pass of a stream.

    Args:
        forward: Computes the network's outputs.
        loss: The unscaled, unweighted loss of the outputs, a scalar.
        scale: What of that loss is differentiated: times the stream's weight, the loss scale, the replica's share.
        variables: The variables to differentiate by.
        batch_size: Number of examples.
        measuring: How to measure per-example norms; None to measure none.
        replacements: Layers that are called in place of others in this pass, `{layer: replacement}`.
    """

    def replaced_forward() -> Any:
        with contextlib.ExitStack() as stack:
            for layer, replacement in (replacements or {}).items():
                stack.enter_context(intercept(layer, replacement.call))
            return forward()

    if measuring is None:
        outputs, gradients, unscaled = value_and_gradients(replaced_forward, loss, variables, scale)
        return Pass(_losses(unscaled), list(variables), gradients, None, None, (outputs,))
    outputs, measured = measure(
        measuring.model,
        forward,
        loss,
        variables,
        batch_size,
        measuring.registry,
        measuring.examples,
        replacements,
        scale,
    )
    norms = measured.gradient_norms()
    if not isinstance(batch_size, int):  # no example has no norm, and 0 / 0 is NaN
        norms = GradientNorms(ops.where(batch_size > 0, norms.values, ops.zeros_like(norms.values)), norms.known)
    mean_squares = measured.mean_squared_norms() if measuring.mean_squares else None
    return Pass(_losses(measured.loss), list(variables), measured.gradients, norms, mean_squares, (outputs,))


def _losses(unscaled: Any) -> Any:
    """Returns the loss of one stream as `Pass.losses`."""
    return ops.reshape(ops.cast(ops.mean(unscaled), "float32"), [1])


def passes_over(
    streams: Sequence[Stream],
    targets: Any,
    run: Callable[[Stream, Any, Any], Pass],
    variables: Sequence[Any],
    batch_size: Size,
    micro_batch_size: Size | None = None,
    replica_norms: bool = False,
    output_specs: Sequence[Any] | None = None,
    identity: Callable[[Any], Any] = id,
    state: Sequence[Any] = (),
) -> Pass:
    """Runs every stream over the batch, whole or in micro-batches, and adds up losses, gradients and norms.

    With losses that are means over the examples, gradient and norms are those of the whole batch, except for layers
    that couple examples: batch normalization sees one micro-batch at a time. Memory is that of one micro-batch of one
    stream.

    Args:
        streams: The views of the batch, in the order in which they run.
        targets: What the losses compare with: nested tensors with the examples on axis 0, or None.
        run: The pass of a stream over a micro-batch: of the stream, its inputs there, and the targets there.
        variables: All K variables that are trained, each once.
        batch_size: Number of examples, B. An empty batch in micro-batches gives zeros.
        micro_batch_size: Number of examples in a micro-batch; None to run the batch as a whole.
        replica_norms: Whether the norms are those of each micro-batch's gradient, summed over the streams, instead of
            measured ones (CLARS with `gradient_norms="replica"`).
        output_specs: With micro-batches, the shape and dtype of each stream's outputs, to return them; None to drop
            them.
        identity: What two variables have in common that are one: in tf_keras mixed precision wraps a variable anew in
            each network.
        state: With micro-batches, variables that a pass may assign, moving averages and metrics; see
            `MicroBatches.added`.

    Returns:
        The sum over the streams, its gradients and norms in the order of `variables`.
    """

    def part(data: Any) -> Pass:
        views, targets = data
        passes: list[Pass] = []
        for stream, inputs in zip(streams, views, strict=True):
            passes.append(run(stream, _after(passes[-1:], inputs), targets))
        total = _added(passes, variables, identity)
        if not replica_norms:
            return total
        norms = [None if g is None else l2_norm(dense(g)) for g in total.gradients]
        return dataclasses.replace(total, norms=GradientNorms.pack(norms))

    data = [stream.inputs for stream in streams], targets
    if micro_batch_size is None:
        return part(data)
    batches = MicroBatches(data, batch_size, micro_batch_size)
    return _averaged(part, batches, variables, len(streams), output_specs or (), state)


def _averaged(
    run: Callable[[Any], Pass],
    batches: MicroBatches,
    variables: Sequence[Any],
    streams: int,
    output_specs: Sequence[Any],
    state: Sequence[Any],
) -> Pass:
    """Returns the results of all micro-batches, averaged by number of examples, in one compiled loop."""
    traced: list[Pass] = []
    packed = [ops.zeros([size], "float32") for size in (streams, len(variables), len(variables))]
    zeros = [*packed, *(ops.zeros(v.shape, v.dtype) for v in variables)]

    def part(micro_batch: Any, share: Any) -> tuple[list[Any], Sequence[Any]]:
        one = run(micro_batch)
        traced.append(one)
        found = [one.losses, one.mean_squares, None if one.norms is None else one.norms.values, *one.gradients]
        weighted = [
            None if value is None else ops.cast(share, zero.dtype) * ops.cast(dense(value), zero.dtype)
            for zero, value in zip(zeros, found, strict=True)
        ]
        return weighted, one.outputs

    sums, outputs = batches.added(part, zeros, output_specs, state)
    losses, mean_squares, norms, *gradients = sums
    if not traced:  # no example, run eagerly
        known = GradientNorms(norms, tuple(True for _ in variables))
        return Pass(losses, list(variables), gradients, known, mean_squares, outputs)
    one = traced[0]  # tells what there is
    return Pass(
        losses,
        list(variables),
        [None if known is None else total for known, total in zip(one.gradients, gradients, strict=True)],
        None if one.norms is None else GradientNorms(norms, one.norms.known),
        None if one.mean_squares is None else mean_squares,
        outputs,
    )


def _added(passes: Sequence[Pass], variables: Sequence[Any], identity: Callable[[Any], Any]) -> Pass:
    """Returns the sum of several passes, variable by variable."""
    number = {identity(variable): i for i, variable in enumerate(variables)}
    gradients: list[list[Any]] = [[] for _ in variables]
    norms = []
    for one in passes:
        numbers = [number[identity(variable)] for variable in one.variables]
        for i, gradient in zip(numbers, one.gradients, strict=True):
            gradients[i].append(gradient)
        if one.norms is not None:
            norms.append(_of_all(one.norms, numbers, len(variables)))
    known = tuple(any(knows) for knows in zip(*(n.known for n in norms), strict=True))
    return Pass(
        ops.concatenate([one.losses for one in passes]),
        list(variables),
        [_sum(parts) for parts in gradients],
        GradientNorms(_sum([n.values for n in norms]), known) if norms else None,
        passes[0].mean_squares if len(passes) == 1 else None,
        [output for one in passes for output in one.outputs],
    )


def _of_all(norms: GradientNorms, numbers: list[int], size: int) -> GradientNorms:
    """Returns the norms of some of all variables, those of these numbers, as norms of all."""
    if numbers == list(range(size)):
        return norms
    known = [False] * size
    for i, knows in zip(numbers, norms.known, strict=True):
        known[i] = knows
    return GradientNorms(ops.scatter([[i] for i in numbers], norms.values, [size]), tuple(known))


def _sum(values: Sequence[Any]) -> Any:
    """Returns the sum of the values that are not None; None if all are. A single value stays as it is."""
    present = [value for value in values if value is not None]
    if len(present) < 2:
        return present[0] if present else None
    return functools.reduce(operator.add, [dense(value) for value in present])


def _after(passes: Sequence[Pass], inputs: Any) -> Any:
    """Returns the inputs, once these passes are done and their activations are freed."""
    done = [g for one in passes for g in one.gradients if g is not None]
    done += [one.norms.values for one in passes if one.norms is not None]
    return run_after(done, inputs) if done else inputs
