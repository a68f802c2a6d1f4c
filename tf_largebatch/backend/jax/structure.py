"""The structure check on JAX: a trace of the forward pass with another batch size, which runs nothing.

`backend/tensorflow/structure.py` says what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np

from tf_largebatch.backend.jax.broadcast import Decisions, run
from tf_largebatch.backend.jax.recorder import Recorder
from tf_largebatch.backend.jax.scopes import inner_scope
from tf_largebatch.norms.intercept import measured_call, recording, refuse_composite
from tf_largebatch.norms.recorder import BatchAxisError, Structure, refusal_in
from tf_largebatch.norms.registry import Registry
from tf_largebatch.norms.structure import PRIMES, foreign_prime, no_batch_message, untraceable_message, without_trace


def structure_of(
    model: Any,
    layers: Sequence[Any],
    registry: Registry,
    replacements: Mapping[Any, Any] | None,
    batch_size: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Structure:
    """Checks a model that is about to be called, and returns what its rules may ask for.

    The arguments are those of `backend/tensorflow/structure.py`, but that no tape is there to check.

    Raises:
        ValueError: If an argument is sparse, a layer's first axis is not the batch, or the model cannot be measured for
            another reason that its forward pass shows; if the model works for no other batch size.
    """
    refuse_composite(model, (args, kwargs))
    flat, tree = jax.tree_util.tree_flatten((args, kwargs), is_leaf=lambda t: t is None)
    batched = [i for i, t in enumerate(flat) if _has_batch_axis(t, batch_size)]
    if not batched:
        raise BatchAxisError(no_batch_message(model, flat, batch_size))

    def check(size: int, tensors: Sequence[Any]) -> Structure:
        arguments = list(flat)
        for i, t in zip(batched, tensors, strict=True):
            arguments[i] = t
        new_args, new_kwargs = jax.tree_util.tree_unflatten(tree, arguments)
        with inner_scope(collect_losses=True) as scope:
            recorder = Recorder(scope, size, trained=lambda variable: False, checks_structure=True)
            with recording(layers, registry, recorder, replacements):
                call = measured_call(model, layers, registry, recorder)

                def program() -> Any:
                    with inner_scope(collect_losses=True) as inside:
                        recorder.scope = inside
                        outputs = call(*new_args, **new_kwargs)
                    return jax.tree_util.tree_leaves((outputs, inside.changes(), inside.losses))

                closed = jax.make_jaxpr(program)()
        if recorder.tables:
            decide = Decisions(size, [])
            run(closed.jaxpr, closed.consts, size, decide, recorder.repeated)
            recorder.structure.broadcasts[0] = decide.taken
        return recorder.structure

    prime = foreign_prime(PRIMES, [flat[i] for i in batched], layers)
    failed: Exception | None = None
    for size in (prime, prime * batch_size):  # the second for models that split the batch
        found: list[Structure] = []

        def trace(*tensors: Any, size: int = size, found: list[Structure] = found) -> None:
            found.append(check(size, tensors))

        specs = [jax.ShapeDtypeStruct((size, *flat[i].shape[1:]), flat[i].dtype) for i in batched]
        try:
            with without_trace(model):
                jax.eval_shape(trace, *specs)
            return found[0]
        except BatchAxisError:
            raise
        except Exception as error:  # whatever a model raises when it is traced with this size
            failed = failed or error
    refusal = refusal_in(failed)
    if refusal is not None:
        raise refusal
    assert failed is not None
    raise ValueError(untraceable_message(model, batch_size, failed)) from failed


def _has_batch_axis(t: Any, batch_size: int) -> bool:
    """Returns whether an argument of the model is an array of the batch's examples."""
    is_array = isinstance(t, np.ndarray) or keras.ops.is_tensor(t)
    return is_array and bool(len(t.shape)) and t.shape[0] == batch_size
