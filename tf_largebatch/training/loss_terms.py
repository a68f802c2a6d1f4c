"""What the terms of a loss divide by, so that the losses of micro-batches add up to the loss of the batch.

A loss term of a batch is `(sum of its elements' losses) / N`. With micro-batches j of m_j of the batch's B examples

    L = sum_j (n_j / N) L_j,          N = sum_j n_j

where n_j is what Keras divides the term by on micro-batch j:

    sum_over_batch_size, mean                the number of elements, and of those that the mask keeps if there is one
    mean_with_sample_weight                  the sum of the weights, and of those that the mask keeps
    sum                                      nothing: n_j / N is 1

The step weights each micro-batch by m_j / B, so that each term is multiplied by `(n_j / N) (B / m_j)` here, which is 1
for a mean over all elements. Losses that couple examples have no such n_j and are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch import keras_internals
from tf_largebatch.training import delegation
from tf_largebatch.training.differentiate import gradients_at
from tf_largebatch.training.micro_batches import MicroBatches, batch_size_of, composite_examples
from tf_largebatch.training.trainer import number_of_replicas, scratch_scope

_MEANS = ("sum_over_batch_size", "mean")
_SAMPLE = 8  # examples
_TOLERANCE = 1e-3  # float32 sums of losses and gradients in another order; coupled losses differ by percents
_REMEDY = "pass micro_batch_size=None and a smaller batch"


class MicroBatchLosses:
    """The compiled loss of a wrapper on micro-batches.

    Args:
        wrapper: The `LargeBatchModel`.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._found: dict[Any, str] = {}  # "mean" or "sum" for losses that are not Keras's own

    @property
    def _own_loss(self) -> bool:
        """Whether the model has a `compute_loss` of its own, whose terms are not known."""
        return delegation.overrides(self._wrapper.model, "compute_loss")

    def _compiled(self) -> list[Any]:
        """The losses given to `compile`."""
        return [keras.losses.get(loss) for loss in keras.tree.flatten(self._wrapper.loss) if loss is not None]

    def needs_a_sample(self) -> bool:
        """Whether it takes some examples to find out if the loss, or what layers add to it, is a mean over them."""
        if "add_loss" not in self._found and any(_is_own(layer) for layer in self._wrapper.model._flatten_layers()):
            return True
        keys = [None] if self._own_loss else [_key(loss) for loss in self._compiled() if _function(loss) is None]
        return any(key not in self._found for key in keys)

    def check(self, x: Any, y: Any, sample_weight: Any = None) -> None:
        """Compares the loss of a few examples with the losses of two parts of them, in value and gradient.

        Args:
            x: Inputs: nested tensors with 2 examples or more on axis 0.
            y: Targets.
            sample_weight: Weights of the examples, or None.

        Raises:
            ValueError: If a loss is neither the mean nor the sum over the parts.
        """
        wrapper = self._wrapper
        with scratch_scope():
            y_pred = wrapper(x, training=False)
        if self._own_loss:
            self._found[None] = self._kind(
                _own_loss(wrapper), (x, y, y_pred, sample_weight), "the model's compute_loss"
            )
        else:
            self._build(y, y_pred, sample_weight)
            for term, arguments in self._calls(y, y_pred, sample_weight):
                if _function(term.loss) is None:
                    self._found[_key(term.loss)] = self._kind_of_own(term.loss, arguments)
                else:
                    self._kind_of(term.loss, arguments[1])
        self._check_additional(x)

    def _kind_of_own(self, loss: Any, arguments: tuple[Any, Any, Any]) -> str:
        return self._kind(lambda data: loss(*data[1:]), (None, *arguments), _name(loss))

    def _check_additional(self, x: Any) -> None:
        """Raises ValueError unless what the layers add to the loss (`add_loss`) are means over the examples."""
        model, size = self._wrapper.model, int(batch_size_of(x))
        self._found["add_loss"] = "mean"

        def additional(start: int, stop: int) -> float:
            with scratch_scope(collect_losses=True):
                model(examples(x, start, stop), training=False)
                with delegation.without_weight_regularizers(model):
                    return sum(float(ops.sum(loss)) for loss in model.losses)

        cut = size // 3 + 1
        whole = additional(0, size)
        mean = (cut * additional(0, cut) + (size - cut) * additional(cut, size)) / size if whole else 0.0
        if abs(whole - mean) > _TOLERANCE * max(abs(whole), abs(mean)):
            raise _coupled(self._wrapper, "what a layer adds by add_loss")

    def _kind(
        self,
        loss: Callable[[Any], Any],
        data: tuple[Any, ...],
        name: str,
        divisor: Callable[[Any], Any] = lambda data: None,
    ) -> str:
        """Finds whether the parts' losses average or add up to the whole's, at the predictions and near them."""
        x, y, y_pred, sample_weight = data
        size = int(batch_size_of(y_pred))
        cut = size // 3 + 1
        kinds = {"mean", "sum"}
        for factors in (np.ones(size), np.random.default_rng(1).uniform(0.5, 1.0, size)):
            nearby = keras.tree.map_structure(lambda t, factors=factors: _scaled(t, factors), y_pred)
            data = x, y, nearby, sample_weight
            ranges = (0, size), (0, cut), (cut, size)
            whole, first, second = (_value_and_gradient(loss, data, *part) for part in ranges)
            divisors = [divisor(examples(data, *part)) for part in ranges]
            n = [
                float(end - start) if d is None else float(d) for d, (start, end) in zip(divisors, ranges, strict=True)
            ]
            for kind, weights in {"mean": (n[1] / max(n[0], 1e-9), n[2] / max(n[0], 1e-9)), "sum": (1.0, 1.0)}.items():
                value, gradient = (
                    ops.concatenate([weights[0] * a, weights[1] * b]) for a, b in zip(first, second, strict=True)
                )
                if not (_close(whole[0], ops.sum(value)) and _close(whole[1], gradient)):
                    kinds.discard(kind)
        if not kinds:
            raise _coupled(self._wrapper, name)
        return "mean" if "mean" in kinds else "sum"

    @contextlib.contextmanager
    def of_part(self, y: Any, y_pred: Any, sample_weight: Any, share: Any, totals: list[Any] | None) -> Iterator[Any]:
        """Within it the compiled loss of a micro-batch weights each of its terms as the whole batch does.

        Args:
            y: The micro-batch's targets.
            y_pred: Its predictions.
            sample_weight: Its weights, or None.
            share: B / m_j.
            totals: What each term divides by on the batch, N; see `totals`.

        Yields:
            The factor of the whole loss: 1, but for a model's own `compute_loss` that sums over the examples.
        """
        compile_loss = self._wrapper._compile_loss
        if self._own_loss:
            self._require_known(None, "the model's compute_loss")
            yield 1.0 if self._found[None] == "mean" else share
        elif compile_loss is None:
            yield 1.0
        else:
            self._build(y, y_pred, sample_weight)
            terms = keras_internals.loss_terms(compile_loss)
            metrics = compile_loss.metrics or [None] * len(terms)
            losses = [
                self._watched(self._weighted(term.loss, share, totals and totals[i]), metrics[i])
                for i, term in enumerate(terms)
            ]
            with keras_internals.replaced_loss_terms(compile_loss, losses, with_metrics=False):
                yield 1.0

    def check_additional(self) -> None:
        """Raises ValueError if layers added losses (`add_loss`) in this pass and no sample was tried on them."""
        model = self._wrapper.model
        with delegation.without_weight_regularizers(model):
            added = bool(model.losses)
        if added and not any(layer.activity_regularizer is not None for layer in model._flatten_layers()):
            self._require_known("add_loss", "what a layer adds by add_loss")

    def totals(self, batches: MicroBatches) -> list[Any] | None:
        """What each term divides by on the whole batch; None where each divides by its number of elements.

        Only masks and weights are computed: nothing reads the rest of these forward passes, and it is pruned.

        Args:
            batches: Micro-batches of `(x, y, sample_weight)`.
        """
        if self._own_loss or self._wrapper._compile_loss is None or not self._depends_on_the_data():
            return None
        (x, y, sample_weight) = batches.data
        if not self._wrapper._compile_loss.built:
            self._build(y, keras_internals.output_spec(self._wrapper, x), sample_weight)
        terms = keras_internals.loss_terms(self._wrapper._compile_loss)

        def divisors(part: Any, _: Any) -> tuple[list[Any], tuple[()]]:
            x, y, sample_weight = part
            with scratch_scope():
                y_pred = self._wrapper(x, training=False)
                calls = self._calls(y, y_pred, sample_weight)
            found = [_divisor(term.loss, *arguments) for term, arguments in calls]
            return [ops.stack([ops.zeros((), "float32") if n is None else n for n in found])], ()

        (sums,), _ = batches.added(divisors, [ops.zeros([len(terms)], "float32")])
        return list(ops.unstack(sums, len(terms)))

    def _depends_on_the_data(self) -> bool:
        losses = self._compiled()
        weighted = any(getattr(loss, "reduction", None) == "mean_with_sample_weight" for loss in losses)
        ignoring = any(keras_internals.wrapped_function(loss)[1].get("ignore_class") is not None for loss in losses)
        return weighted or ignoring or _makes_masks(self._wrapper.model)

    def _weighted(self, loss: Any, share: Any, total: Any) -> Callable[..., Any]:
        def weighted(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            kind = self._kind_of(loss, y_pred)
            value = loss(y_true, y_pred, sample_weight)
            if kind == "sum":
                return value * ops.cast(share, value.dtype)
            divisor = _divisor(loss, y_true, y_pred, sample_weight)
            if divisor is None:
                return value
            if total is None:
                name, model = _capital(_name(loss)), self._wrapper.model.name
                raise ValueError(
                    f"{name} got predictions with a mask that no layer of {model!r} is known to make, so that "
                    f"micro-batches cannot be weighted: {_REMEDY}."
                )
            return value * ops.cast(ops.divide_no_nan(divisor, total) * share, value.dtype)

        return weighted

    def _watched(self, loss: Callable[..., Any], metric: Any) -> Callable[..., Any]:
        """The loss of an output, which also updates the output's metric: by examples, as Keras weights batches."""

        def watched(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            value = loss(y_true, y_pred, sample_weight)
            if metric is not None:
                undivided = value * ops.cast(number_of_replicas(), value.dtype)
                metric.update_state(undivided, sample_weight=batch_size_of(y_pred))
            return value

        return watched

    def _kind_of(self, loss: Any, y_pred: Any) -> str:
        """Returns whether the loss is a "mean" or a "sum" over the examples.

        Raises:
            ValueError: If the loss couples examples, is not reduced, or is not known.
        """
        if loss.reduction in (None, "none"):
            raise ValueError(
                f"{_capital(_name(loss))} must reduce to a scalar with "
                f"micro_batch_size={self._wrapper.micro_batch_size}; received reduction={loss.reduction!r}: "
                "use 'sum_over_batch_size' or 'sum'."
            )
        if _function(loss) is None:
            self._require_known(_key(loss), _name(loss))
            # Keras sums or averages the values of a loss that has some; a scalar is the loss's own affair.
            return self._found[_key(loss)]
        if _couples_examples(loss, y_pred):
            raise _coupled(self._wrapper, _name(loss))
        return "sum" if loss.reduction == "sum" else "mean"

    def _require_known(self, key: Any, name: str) -> None:
        if key not in self._found:
            raise ValueError(
                f"micro_batch_size={self._wrapper.micro_batch_size} needs to know whether {name} is a mean over the "
                "examples: fit finds out by itself; in a loop of your own call check_micro_batches(x, y) with some "
                "examples first."
            )

    def _build(self, y: Any, y_pred: Any, sample_weight: Any) -> None:
        if not self._wrapper._compile_loss.built:
            keras_internals.build_compile_loss(self._wrapper._compile_loss, y, y_pred, sample_weight)

    def _calls(self, y: Any, y_pred: Any, sample_weight: Any) -> list[tuple[Any, tuple[Any, Any, Any]]]:
        """Each term, and the targets, predictions and weights that it is called with."""
        compile_loss = self._wrapper._compile_loss
        if compile_loss is None:
            return []
        terms = keras_internals.loss_terms(compile_loss)
        calls: list[tuple[Any, Any, Any]] = []

        def note(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            calls.append((y_true, y_pred, sample_weight))
            return ops.zeros(())

        with keras_internals.replaced_loss_terms(compile_loss, [note] * len(terms), with_metrics=False):
            compile_loss(y, y_pred, sample_weight)
        return list(zip(terms, calls, strict=True))


def _divisor(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
    """What Keras divides a loss by, up to a factor that is the same for all micro-batches; None for the examples."""
    mask = keras_internals.keras_mask(y_pred)
    if keras_internals.wrapped_function(loss)[1].get("ignore_class") is not None:
        values = loss.call(ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred))
        own = keras_internals.keras_mask(values)
        mask = own if mask is None else mask & own
    if loss.reduction in _MEANS:
        return None if mask is None else ops.sum(ops.cast(mask, "float32"))
    if mask is None and sample_weight is None:
        return None
    weights = None if sample_weight is None else ops.cast(sample_weight, "float32")
    if mask is None:
        return ops.sum(weights)
    mask = ops.cast(mask, "float32")
    if weights is not None:
        mask, weights = keras_internals.of_same_rank(mask, weights)
        mask = mask * weights
    return ops.sum(mask)


def _function(loss: Any) -> Any:
    """The function of Keras's behind one of Keras's own losses; None for other losses."""
    if isinstance(loss, keras.losses.Loss) and not type(loss).__module__.startswith("keras."):
        return None
    wrapped, _ = keras_internals.wrapped_function(loss)
    function = loss if wrapped is None else wrapped
    return function if (getattr(function, "__module__", None) or "").startswith("keras.") else None


def _couples_examples(loss: Any, y_pred: Any) -> bool:
    """Whether one of Keras's own losses reduces over axis 0, the examples, or compares them."""
    name = _function(loss).__name__
    axis = keras_internals.wrapped_function(loss)[1].get("axis", None if name in ("dice", "tversky") else -1)
    if name == "circle" or axis is None:
        return True
    rank = len(y_pred.shape)
    return any(one % rank == 0 for one in (axis if isinstance(axis, tuple | list) else [axis])) and rank > 1


def _makes_masks(model: keras.Model) -> bool:
    """Whether a layer may make a mask that is not another one's."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False):
            return True
        if (
            _is_own(layer)
            and not isinstance(layer, keras.Model)
            and type(layer).compute_mask is not keras.layers.Layer.compute_mask
        ):
            return True
    return False


def _is_own(layer: Any) -> bool:
    """Whether a layer's or model's class is none of Keras's."""
    return not type(layer).__module__.startswith("keras.")


def _coupled(wrapper: Any, name: str) -> ValueError:
    return ValueError(
        f"{_capital(name)} couples the examples of a batch: it is no mean over them, and micro-batches of "
        f"micro_batch_size={wrapper.micro_batch_size} would train with another loss: {_REMEDY}."
    )


def _own_loss(wrapper: Any) -> Callable[[Any], Any]:
    def loss(data: Any) -> Any:
        x, y, y_pred, sample_weight = data
        with delegation.without_weight_regularizers(wrapper, wrapper.model), scratch_scope():
            return wrapper.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)

    return loss


def _value_and_gradient(loss: Callable[[Any], Any], data: tuple[Any, ...], start: int, stop: int) -> tuple[Any, Any]:
    """The loss of some examples, [1], and its gradient by their predictions, [examples, values], float32."""
    x, y, y_pred, sample_weight = examples(data, start, stop)
    flat = keras.tree.flatten(y_pred)
    places = [i for i, t in enumerate(flat) if t is not None]

    def of_predictions(*predictions: Any) -> Any:
        arguments = list(flat)
        for i, t in zip(places, predictions, strict=True):
            _copy_mask(flat[i], t)
            arguments[i] = t
        return ops.sum(loss((x, y, keras.tree.pack_sequence_as(y_pred, arguments), sample_weight)))

    value, gradients = gradients_at(of_predictions, [flat[i] for i in places])
    rows = [ops.cast(ops.reshape(g, [stop - start, -1]), "float32") for g in gradients]
    return ops.reshape(ops.cast(value, "float32"), [1]), ops.concatenate(rows, axis=1)


def _close(a: Any, b: Any) -> bool:
    """Whether two tensors are equal but for rounding, relative to the largest entry."""
    scale = ops.maximum(ops.max(ops.abs(a)), ops.max(ops.abs(b)))
    return bool(ops.max(ops.abs(a - b)) <= _TOLERANCE * scale)


def _scaled(t: Any, factors: np.ndarray) -> Any:
    """Predictions, each example's multiplied by its factor: probabilities stay in [0, 1]."""
    if t is None:
        return None
    scaled = t * ops.cast(np.reshape(factors, [-1, *(1,) * (len(t.shape) - 1)]), t.dtype)
    _copy_mask(t, scaled)
    return scaled


def _copy_mask(source: Any, target: Any) -> None:
    """Gives a tensor the mask of another one."""
    mask = keras_internals.keras_mask(source)
    if mask is not None and target is not source:
        keras_internals.set_keras_mask(target, mask)


def examples(data: Any, start: int, stop: int) -> Any:
    """Some examples of nested eager tensors, with their masks."""

    def cut(t: Any) -> Any:
        if t is None:
            return None
        part = composite_examples(t, start, stop)
        if part is not None:
            return part
        mask = keras_internals.keras_mask(t)
        part = t[start:stop]
        if mask is not None:
            keras_internals.set_keras_mask(part, mask[start:stop])
        return part

    return keras.tree.map_structure(cut, data)


def spread_examples(data: Any) -> Any:
    """At most 8 examples, spread over nested arrays or tensors with the examples on axis 0, as tensors."""

    def take(t: Any) -> Any:
        if t is None:
            return None
        part = composite_examples(t, 0, _SAMPLE)
        if part is not None:
            return part
        array = t if ops.is_tensor(t) else np.asarray(t)
        rows = np.unique(np.linspace(0, len(array) - 1, _SAMPLE).astype(int))
        found = ops.take(array, rows, axis=0)
        floating = keras.backend.is_float_dtype(keras.backend.standardize_dtype(found.dtype))
        return ops.cast(found, keras.config.floatx()) if floating else found

    return keras.tree.map_structure(take, data)


def _key(loss: Any) -> Any:
    """What stays the same of a loss from `compile` to the step: the function that Keras wraps, or the object."""
    wrapped, _ = keras_internals.wrapped_function(loss)
    return id(loss if wrapped is None else wrapped)


def _name(loss: Any) -> str:
    return f"the loss {getattr(loss, 'name', None) or getattr(loss, '__name__', type(loss).__name__)!r}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
