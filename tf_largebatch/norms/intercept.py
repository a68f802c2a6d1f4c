"""Replaces the `call` of layers for the length of one forward pass, in the thread that runs it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tf_largebatch.norms.composite import INVALID_ARGUMENT, REFUSES_COMPOSITE, is_composite
from tf_largebatch.norms.recorder import (
    BatchAxisError,
    Recorder,
    Structure,
    batch_axis_message,
    composite_message,
    layer_path,
    refusal_in,
)
from tf_largebatch.norms.registry import Registry

_lock = threading.Lock()


class _Calls:
    """What an intercepted layer has for its `call`: for each thread its own function, for all others the class's.

    Another thread may predict with the model while a step is traced. The replicas' threads of MirroredStrategy take
    turns wherever they meet, which is in the middle of the forward pass if a batch normalization is synchronized; each
    has a recorder of its own, but all share the layer.
    """

    is_interception = True  # what the registry knows it by

    def __init__(self, layer: Any, replaced: Any) -> None:
        self.of_thread: dict[int, Callable[..., Any]] = {}
        self.replaced = replaced  # what the instance had of its own, mostly nothing
        self.users = 0
        self.original = type(layer).call.__get__(layer) if replaced is None else replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.of_thread.get(threading.get_ident(), self.original)(*args, **kwargs)


@contextlib.contextmanager
def intercept(layer: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Within it this thread's `layer.call` is `call`; when the last thread has left, the layer is as it was."""
    with _lock:
        calls = vars(layer).get("call")
        if not isinstance(calls, _Calls):
            calls = _Calls(layer, calls)
            # Past Keras's tracking: this is no state of the layer.
            object.__setattr__(layer, "call", calls)
        calls.users += 1
    thread = threading.get_ident()
    before = calls.of_thread.get(thread)
    calls.of_thread[thread] = call
    try:
        yield
    finally:
        if before is None:
            calls.of_thread.pop(thread, None)
        else:
            calls.of_thread[thread] = before
        with _lock:
            calls.users -= 1
            if calls.users == 0:
                if calls.replaced is None:
                    vars(layer).pop("call", None)
                else:
                    object.__setattr__(layer, "call", calls.replaced)


def original_call(layer: Any) -> Callable[..., Any]:
    """Returns the layer's own `call`, whether it is intercepted or not."""
    calls = vars(layer).get("call")
    return calls.original if isinstance(calls, _Calls) else layer.call


def recorded_call(layer: Any, registry: Registry, recorder: Recorder) -> Callable[..., Any]:
    """Returns what to call in place of a layer's `call`: its rule, with the recorder."""
    rule: Any = registry.rule_for(layer)  # layers without one have been refused

    def call(*args: Any, **kwargs: Any) -> Any:
        with recorder.in_layer(layer):
            if REFUSES_COMPOSITE:
                refuse_composite(layer, (args, kwargs))
            try:
                outputs = rule(layer, recorder, *args, **kwargs)
            except (ValueError, TypeError, AttributeError, INVALID_ARGUMENT) as error:
                raise _explained(error, layer, recorder, (args, kwargs)) from error
            return recorder.guard(outputs, layer_path(layer))

    return call


def measured_call(model: Any, layers: Sequence[Any], registry: Registry, recorder: Recorder) -> Callable[..., Any]:
    """Returns what a model computes by when its layers are measured: its rule if it is one of them, else its `call`."""
    return recorded_call(model, registry, recorder) if model in layers else original_call(model)


@contextlib.contextmanager
def recording_checked_calls(
    model: Any,
    layers: Sequence[Any],
    registry: Registry,
    recorder: Recorder,
    replacements: Mapping[Any, Any] | None,
    structure: Callable[[tuple[Any, ...], dict[str, Any]], Structure],
) -> Iterator[None]:
    """As `recording`; each call of the model begins with its structure, and ends with a refusal's own message.

    Args:
        model: The model that is called.
        layers: The layers to measure.
        registry: Their rules.
        recorder: The recorder of the forward pass.
        replacements: For some layers the one that is called in their place.
        structure: Of the arguments of the model's `call`, those by position and those by name.
    """
    with recording(layers, registry, recorder, replacements):
        own_call = measured_call(model, layers, registry, recorder)

        def checked_call(*args: Any, **kwargs: Any) -> Any:
            recorder.begin_model_call(structure(args, kwargs))
            try:
                return own_call(*args, **kwargs)
            except Exception as error:
                refusal = refusal_in(error)
                if refusal is None or refusal is error:
                    raise
                raise refusal from None

        with intercept(model, checked_call):
            yield


def refuse_composite(layer: Any, arguments: Any) -> None:
    """Raises ValueError if one of a layer's arguments is sparse, on a backend where no rule measures that."""
    for t in filter(is_composite, keras.tree.flatten(arguments)):
        raise ValueError(composite_message(layer_path(layer), t, "on JAX only dense arrays are measured"))


def _explained(error: Exception, layer: Any, recorder: Recorder, arguments: Any) -> Exception:
    """Returns the error, or what caused it: a sparse or ragged input or, in the structure check, another first axis."""
    if refusal_in(error) is None:
        for t in filter(is_composite, keras.tree.flatten(arguments)):
            return ValueError(composite_message(layer_path(layer), t, f"{type(error).__name__}: {error}"))
    if recorder.checks_structure and not isinstance(error, BatchAxisError):
        for t in keras.tree.flatten(arguments):
            rows = t.shape[0] if _is_float_array(t) else None
            if rows is not None and isinstance(recorder.batch_size, int) and rows != recorder.batch_size:
                return BatchAxisError(batch_axis_message(layer_path(layer), "any", rows, recorder.batch_size))
    return error


def _is_float_array(t: Any) -> bool:
    is_dense = keras.ops.is_tensor(t) and not is_composite(t) and len(t.shape) > 0
    return is_dense and keras.backend.is_float_dtype(t.dtype)


@contextlib.contextmanager
def recording(
    layers: Sequence[Any], registry: Registry, recorder: Recorder, replacements: Mapping[Any, Any] | None = None
) -> Iterator[None]:
    """Within it the layers compute by their rules, which record with the recorder; afterwards they are as they were.

    Args:
        layers: The layers to measure.
        registry: Their rules.
        recorder: The recorder of this replica's forward pass.
        replacements: For some layers the one that is called in their place.
    """
    replacements = replacements or {}

    def replaced_call(replacement: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: replacement.call(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in layers:
            if layer not in replacements:
                stack.enter_context(intercept(layer, recorded_call(layer, registry, recorder)))
        for layer, replacement in replacements.items():
            stack.enter_context(intercept(layer, replaced_call(replacement)))
        yield
