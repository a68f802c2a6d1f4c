"""Standing in for the `call` of layers for the length of one forward pass, replica by replica."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import Registry
from tf_largebatch.optimizers.replica_local import ReplicaLocal

_lock = threading.Lock()


class _Calls:
    """What stands in for a layer's `call`: for each replica its own function, for anybody else the class's.

    The replicas' threads of MirroredStrategy take turns wherever they meet, which is in the middle of the forward pass
    if a batch normalisation is synchronised. Each has a record of its own, but all share the layer.
    """

    def __init__(self, layer: Any, replaced: Any) -> None:
        self.of_replica = ReplicaLocal()
        self.replaced = replaced  # what the instance had of its own, mostly nothing
        self.users = 0
        self._original = type(layer).call.__get__(layer) if replaced is None else replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.of_replica.get() or self._original)(*args, **kwargs)


@contextlib.contextmanager
def intercept(layer: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Within it this replica's `layer.call` is `call`; when the last replica has left, the layer is as it was."""
    with _lock:
        calls = vars(layer).get("call")
        if not isinstance(calls, _Calls):
            calls = _Calls(layer, calls)
            # Past Keras's tracking: this is no state of the layer.
            object.__setattr__(layer, "call", calls)
        calls.users += 1
    try:
        with calls.of_replica.holding(call):
            yield
    finally:
        with _lock:
            calls.users -= 1
            if calls.users == 0:
                if calls.replaced is None:
                    vars(layer).pop("call", None)
                else:
                    object.__setattr__(layer, "call", calls.replaced)


@contextlib.contextmanager
def recording(
    layers: Sequence[Any], registry: Registry, recorder: Recorder, replacements: Mapping[Any, Any] | None = None
) -> Iterator[None]:
    """Within it the layers compute by their rules, which record with the recorder; afterwards they are as they were.

    Args:
        layers: the layers to measure.
        registry: their rules.
        recorder: the record of this replica's forward pass.
        replacements: for some layers the one that is called in their place.
    """
    replacements = replacements or {}

    def recorded_call(layer: Any) -> Callable[..., Any]:
        rule: Any = registry.rule_for(layer)  # layers without one have been refused

        def call(*args: Any, **kwargs: Any) -> Any:
            recorder.enter_layer(getattr(layer, "path", layer.name))
            return rule(layer, recorder, *args, **kwargs)

        return call

    def replaced_call(replacement: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: replacement.call(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in layers:
            if layer not in replacements:
                stack.enter_context(intercept(layer, recorded_call(layer)))
        for layer, replacement in replacements.items():
            stack.enter_context(intercept(layer, replaced_call(replacement)))
        yield
