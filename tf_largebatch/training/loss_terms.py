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
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from tf_largebatch import keras_internals
from tf_largebatch.training import delegation, loss_kind
from tf_largebatch.training.loss_divisor import couples_examples, depends_on_the_data, divisor, is_own, keras_function
from tf_largebatch.training.micro_batches import MicroBatches, batch_size_of
from tf_largebatch.training.trainer import number_of_replicas, scratch_scope

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

    @property
    def _total_loss(self) -> Any:
        """The compiled loss of all outputs; None without one."""
        return keras_internals.compiled_loss(self._wrapper)

    def _compiled(self) -> list[Any]:
        """Returns the losses given to `compile`."""
        return [keras.losses.get(loss) for loss in keras.tree.flatten(self._wrapper.loss) if loss is not None]

    def needs_a_sample(self) -> bool:
        """Returns whether some examples are needed to find out if the loss, and what layers add, is a mean."""
        if "add_loss" not in self._found and any(
            is_own(layer) for layer in keras_internals.layers_within(self._wrapper.model)
        ):
            return True
        keys = [None] if self._own_loss else [_key(loss) for loss in self._compiled() if keras_function(loss) is None]
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
            data = x, y, y_pred, sample_weight
            self._found[None] = self._kind_of_own(_own_loss(wrapper), data, "the model's compute_loss")
        else:
            self._build(y, y_pred, sample_weight)
            for term, arguments in self._calls(y, y_pred, sample_weight):
                if keras_function(term.loss) is None:
                    loss = functools.partial(_of_data, term.loss)
                    self._found[_key(term.loss)] = self._kind_of_own(loss, (None, *arguments), _name(term.loss))
                else:
                    self._kind_of(term.loss, arguments[1])
        self._found["add_loss"] = "mean"
        if not loss_kind.adds_means(wrapper.model, x):
            raise _coupled(wrapper, "what a layer adds by add_loss")

    def _kind_of_own(self, loss: Callable[[Any], Any], data: tuple[Any, ...], name: str) -> str:
        """Finds out from a sample whether a loss that is not Keras's own is a "mean" or a "sum"."""
        kind = loss_kind.kind_of_loss(loss, data)
        if kind is None:
            raise _coupled(self._wrapper, name)
        return kind

    @contextlib.contextmanager
    def of_part(
        self, y: Any, y_pred: Any, sample_weight: Any, share: Any, totals: list[Any] | None, watched: bool = True
    ) -> Iterator[Any]:
        """Within it the compiled loss of a micro-batch weights each of its terms as the whole batch does.

        Args:
            y: The micro-batch's targets.
            y_pred: Its predictions.
            sample_weight: Its weights, or None.
            share: B / m_j.
            totals: What each term divides by on the batch, N; see `totals`.
            watched: Whether the metric of each output's loss is updated.

        Yields:
            The factor of the whole loss: 1, but for a model's own `compute_loss` that sums over the examples.
        """
        compile_loss = self._total_loss
        if self._own_loss:
            self._require_known(None, "the model's compute_loss")
            yield 1.0 if self._found[None] == "mean" else share
        elif compile_loss is None:
            yield 1.0
        else:
            self._build(y, y_pred, sample_weight)
            terms = keras_internals.loss_terms(compile_loss)
            metrics = (compile_loss.metrics if watched else None) or [None] * len(terms)
            losses = [
                self._watched(self._weighted(term.loss, share, totals and totals[i]), metrics[i])
                for i, term in enumerate(terms)
            ]
            with keras_internals.replaced_loss_terms(compile_loss, losses, with_metrics=False):
                yield 1.0

    def check_additional(self) -> None:
        """Raises ValueError if layers added losses (`add_loss`) in this pass and no sample was tried on them."""
        model = self._wrapper.model
        with keras_internals.without_weight_regularizers(model):
            added = bool(model.losses)
        if added and not any(layer.activity_regularizer is not None for layer in keras_internals.layers_within(model)):
            self._require_known("add_loss", "what a layer adds by add_loss")

    def totals(self, batches: MicroBatches) -> list[Any] | None:
        """Returns what each term divides by on the whole batch; None where each divides by its number of elements.

        Only masks and weights are computed: nothing reads the rest of these forward passes, and it is pruned.

        Args:
            batches: Micro-batches of `(x, y, sample_weight)`.
        """
        if self._own_loss or self._total_loss is None:
            return None
        if not depends_on_the_data(self._compiled(), self._wrapper.model):
            return None
        (x, y, sample_weight) = batches.data
        if not self._total_loss.built:
            self._build(y, keras_internals.output_spec(self._wrapper, x), sample_weight)
        terms = keras_internals.loss_terms(self._total_loss)

        def divisors(part: Any, _: Any) -> tuple[list[Any], tuple[()]]:
            x, y, sample_weight = part
            with scratch_scope():
                y_pred = self._wrapper(x, training=False)
                calls = self._calls(y, y_pred, sample_weight)
            found = [divisor(term.loss, *arguments) for term, arguments in calls]
            return [ops.stack([ops.zeros((), "float32") if n is None else n for n in found])], ()

        (sums,), _ = batches.added(divisors, [ops.zeros([len(terms)], "float32")])
        return list(ops.unstack(sums, len(terms)))

    def _weighted(self, loss: Any, share: Any, total: Any) -> Callable[..., Any]:
        def weighted(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            kind = self._kind_of(loss, y_pred)
            value = loss(y_true, y_pred, sample_weight)
            if kind == "sum":
                return value * ops.cast(share, value.dtype)
            n = divisor(loss, y_true, y_pred, sample_weight)
            if n is None:
                return value
            if total is None:
                name, model = _capital(_name(loss)), self._wrapper.model.name
                raise ValueError(
                    f"{name} got predictions with a mask that no layer of {model!r} is known to make, so that "
                    f"micro-batches cannot be weighted: {_REMEDY}."
                )
            return value * ops.cast(ops.divide_no_nan(n, total) * share, value.dtype)

        return weighted

    def _watched(self, loss: Callable[..., Any], metric: Any) -> Callable[..., Any]:
        """Returns the loss of an output, which also updates the output's metric.

        By examples, as Keras weights batches.
        """

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
        if keras_function(loss) is None:
            self._require_known(_key(loss), _name(loss))
            # Keras sums or averages the values of a loss that has some; a scalar is the loss's own affair.
            return self._found[_key(loss)]
        if couples_examples(loss, y_pred):
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
        if not self._total_loss.built:
            keras_internals.build_compile_loss(self._total_loss, y, y_pred, sample_weight)

    def _calls(self, y: Any, y_pred: Any, sample_weight: Any) -> list[tuple[Any, tuple[Any, Any, Any]]]:
        return [] if self._total_loss is None else calls_of_terms(self._total_loss, y, y_pred, sample_weight)


def calls_of_terms(
    compile_loss: Any, y: Any, y_pred: Any, sample_weight: Any
) -> list[tuple[Any, tuple[Any, Any, Any]]]:
    """Returns each term of a built compiled loss, and the targets, predictions and weights that it is called with."""
    terms = keras_internals.loss_terms(compile_loss)
    calls: list[tuple[Any, Any, Any]] = []

    def note(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        calls.append((y_true, y_pred, sample_weight))
        return ops.zeros(())

    with keras_internals.replaced_loss_terms(compile_loss, [note] * len(terms), with_metrics=False):
        compile_loss(y, y_pred, sample_weight)
    return list(zip(terms, calls, strict=True))


def _coupled(wrapper: Any, name: str) -> ValueError:
    return ValueError(
        f"{_capital(name)} couples the examples of a batch: it is no mean over them, and micro-batches of "
        f"micro_batch_size={wrapper.micro_batch_size} would train with another loss: {_REMEDY}."
    )


def _of_data(loss: Any, data: tuple[Any, ...]) -> Any:
    """Returns a compiled loss of targets, predictions and weights, as a loss of all data."""
    return loss(*data[1:])


def _own_loss(wrapper: Any) -> Callable[[Any], Any]:
    def loss(data: Any) -> Any:
        x, y, y_pred, sample_weight = data
        with keras_internals.without_weight_regularizers(wrapper, wrapper.model), scratch_scope():
            return wrapper.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)

    return loss


def _key(loss: Any) -> Any:
    """Returns what stays the same of a loss from `compile` to the step.

    The function that Keras wraps, or the object.
    """
    wrapped, _ = keras_internals.wrapped_function(loss)
    return id(loss if wrapped is None else wrapped)


def _name(loss: Any) -> str:
    return f"the loss {getattr(loss, 'name', None) or getattr(loss, '__name__', type(loss).__name__)!r}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
