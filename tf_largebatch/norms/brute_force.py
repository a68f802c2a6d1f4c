"""The slow, obviously right reference for per-example gradient norms. It knows no layer and uses no rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.core.paths import variable_labels
from tf_largebatch.keras_internals import layers_within
from tf_largebatch.norms.composite import is_sparse
from tf_largebatch.norms.layer_calls import LayerCall
from tf_largebatch.norms.per_example import as_loss, as_tensors, check_built, number_of_examples, undivided
from tf_largebatch.norms.state import restored, state_of

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.brute_force import differentiated_run, gradients_of, recorded_run
else:
    from tf_largebatch.backend.tensorflow.brute_force import differentiated_run, gradients_of, recorded_run


def brute_force_gradient_norms(
    model: keras.Model,
    x: Any,
    y: Any,
    loss: str | keras.losses.Loss | Callable[[Any, Any], Any],
    sample_weight: Any = None,
    training: bool = True,
    examples: Sequence[int] | None = None,
) -> dict[str, Any]:
    """As `per_example_gradient_norms`, example by example and layer by layer; of these `examples` or of all.

    One backward pass gives `d`, the gradient of the loss at every layer's outputs. Then, for each example i and each
    layer, the layer alone is differentiated with respect to its own variables against `d` with every other example's
    rows set to zero: that is `G_i`. It takes B backward passes through every layer.

    The reference checks itself. A layer that is run alone must give what it gave in the model, each layer's outputs
    must have one row more when the batch has one example more, and the contributions of all examples must add up to
    the gradient.

    Raises:
        ValueError: If one of these checks fails; the message names the layer or variable.
    """
    check_built(model)
    x, y = as_tensors(x), as_tensors(y)
    batch_size = number_of_examples(x)
    loss_object = as_loss(loss)
    variables = model.trainable_variables
    state = state_of(model)
    contributions: dict[tuple[int, int], Any] = {}
    with restored(state), _with_cells_called(model):
        with restored(state), _without_states_of_a_fixed_batch(model):
            one_more = recorded_run(model, _with_first_repeated(x), training, state)
        calls, d_calls, gradients = differentiated_run(
            model, x, training, state, lambda y_pred: loss_object(y, y_pred, sample_weight=sample_weight), variables
        )
        total: dict[int, Any] = {}
        for position, (call, d) in enumerate(zip(calls, d_calls, strict=True)):
            if all(part is None for part in d):
                continue
            _check_rows(call, one_more[position] if position < len(one_more) else None, batch_size)
            for variable, share in gradients_of(call, d, check=True):
                total[id(variable)] = total.get(id(variable), 0.0) + share
            for i in range(batch_size) if examples is None else examples:
                d_of_example = [None if part is None else part * _row(i, part) for part in d]
                for variable, share in gradients_of(call, d_of_example):
                    key = i, id(variable)
                    contributions[key] = contributions.get(key, 0.0) + share
    undo = undivided(loss_object, batch_size, sample_weight)
    shown = range(batch_size) if examples is None else examples
    norms: dict[str, Any] = {}
    for label, v, gradient in zip(variable_labels(variables), variables, gradients, strict=True):
        of_examples = [ops.norm(ops.reshape(contributions.get((i, id(v)), ops.zeros(v.shape)), [-1])) for i in shown]
        _check_total(label, total.get(id(v)), gradient, of_examples)
        if id(v) in total:
            norms[label] = undo * ops.stack(of_examples)
    return norms


def _check_rows(call: LayerCall, with_one_more: LayerCall | None, batch_size: int) -> None:
    """Raises unless every output has one row for each example, whatever their number."""
    rows = [t.shape[0] if len(t.shape) else None for t in call.floats]
    more = None if with_one_more is None else [t.shape[0] if len(t.shape) else None for t in with_one_more.floats]
    if any(n != batch_size for n in rows) or more is None or any(n != batch_size + 1 for n in more):
        raise ValueError(
            "The brute-force reference needs the examples on axis 0 of every layer's output; layer "
            f"{call.layer.path!r} has {rows} rows for {batch_size} examples, and {more} for {batch_size + 1}."
        )


def _check_total(label: str, total: Any, gradient: Any, of_examples: Sequence[Any]) -> None:
    """Raises unless the contributions add up to the gradient."""
    dtype = "float32" if gradient is None else keras.backend.standardize_dtype(gradient.dtype)
    found = 0.0 if total is None else total
    expected = 0.0 if gradient is None else ops.cast(ops.convert_to_tensor(gradient), "float32")
    scale = ops.max(ops.abs(expected)) + ops.max(ops.stack([0.0, *of_examples]))
    half = keras.config.dtype_policy().compute_dtype != "float32" or dtype != "float32"
    if bool(ops.max(ops.abs(found - expected)) > (5e-2 if half else 1e-4) * scale + 1e-6):
        raise ValueError(
            f"The brute-force reference cannot split the gradient of {label!r}: it comes not only through the outputs "
            "of the layer that owns the variable."
        )


@contextlib.contextmanager
def _without_states_of_a_fixed_batch(model: Any) -> Iterator[None]:
    """Within it stateful recurrent layers start anew, with as many states as there are examples."""
    stateful = [layer for layer in layers_within(model) if hasattr(layer, "cell") and layer.stateful]
    try:
        for layer in stateful:
            object.__setattr__(layer, "stateful", False)
        yield
    finally:
        for layer in stateful:
            object.__setattr__(layer, "stateful", True)


@contextlib.contextmanager
def _with_cells_called(model: Any) -> Iterator[None]:
    """Within it recurrent layers call their cells, which own the variables, step by step."""
    fast = [layer for layer in layers_within(model) if getattr(layer, "use_cudnn", False)]
    before = [layer.use_cudnn for layer in fast]
    try:
        for layer in fast:
            layer.use_cudnn = False
        yield
    finally:
        for layer, value in zip(fast, before, strict=True):
            layer.use_cudnn = value


def _with_first_repeated(batch: Any) -> Any:
    """Returns a batch with its first example once more."""

    def repeated(t: Any) -> Any:
        if t is None:
            return t
        if is_sparse(t):  # on TensorFlow: on JAX as_tensors has refused it
            import tensorflow as tf

            first = tf.sparse.slice(t, [0] * t.shape.rank, [1, *t.shape[1:]])
            return tf.sparse.concat(0, [t, first])
        return ops.concatenate([t, t[:1]], axis=0)

    return keras.tree.map_structure(repeated, batch)


def _row(i: int, t: Any) -> Any:
    """Returns one for example i, zero for the others, ready to multiply t with."""
    row = ops.one_hot(i, t.shape[0], dtype=keras.backend.standardize_dtype(t.dtype))
    return ops.reshape(row, [-1] + [1] * (len(t.shape) - 1))
