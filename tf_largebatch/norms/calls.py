"""Standing in for the `call` of layers for the length of one forward pass, replica by replica."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tf_largebatch.norms.registry import Registry
from tf_largebatch.norms.tap import Tap
from tf_largebatch.optimizers.hand_over import PerReplica

_lock = threading.Lock()


class _Calls:
    """What stands in for a layer's `call`: for each replica its own function, for anybody else the class's.

    The replicas' threads of MirroredStrategy take turns wherever they meet, which is in the middle of the forward pass
    if a batch normalisation is synchronised. Each has a record of its own, but all share the layer.
    """

    def __init__(self, layer: Any, replaced: Any) -> None:
        self.of_replica = PerReplica()
        self.replaced = replaced  # what the instance had of its own, mostly nothing
        self.users = 0
        self._original = type(layer).call.__get__(layer) if replaced is None else replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.of_replica.get() or self._original)(*args, **kwargs)


@contextlib.contextmanager
def standing_in(layer: Any, call: Callable[..., Any]) -> Iterator[None]:
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
def tapped(
    layers: Sequence[Any], registry: Registry, tap: Tap, substitutes: Mapping[Any, Any] | None = None
) -> Iterator[None]:
    """Within it the layers compute by their rules, which record with the tap; afterwards they are as they were.

    Args:
        layers: the layers to measure.
        registry: their rules.
        tap: the record of this replica's forward pass.
        substitutes: for some layers the one that is called in their place.
    """
    substitutes = substitutes or {}

    def tapped_call(layer: Any) -> Callable[..., Any]:
        rule: Any = registry.rule_for(layer)  # layers without one have been refused

        def call(*args: Any, **kwargs: Any) -> Any:
            tap.enter_layer(getattr(layer, "path", layer.name))
            return rule(layer, tap, *args, **kwargs)

        return call

    def substituted_call(substitute: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: substitute.call(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in layers:
            if layer not in substitutes:
                stack.enter_context(standing_in(layer, tapped_call(layer)))
        for layer, substitute in substitutes.items():
            stack.enter_context(standing_in(layer, substituted_call(substitute)))
        yield
