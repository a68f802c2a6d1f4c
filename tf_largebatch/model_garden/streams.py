"""Sibling networks: further copies of a network that share chosen variables with it.

tf_keras has no way to run a model with other batch norms or other weights than its own. Instead of rerouting layers
while they run, which the interleaved replica threads of `MirroredStrategy` would trip over, the network is built again
by the very function that built it, and each variable that the building asks for is either the original's or a new one.
So a sibling is a plain model, the original stays untouched, and nothing has to be routed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras

Choose = Callable[[Any, Callable[..., Any], dict[str, Any]], Any]


class Blueprint:
    """A network, the variables created by building it in their order, and how to build it again.

    Args:
        build: builds the network; must create the same variables in the same order each time.

    Attributes:
        network: the network built.
        created: its variables as the distribution strategy made them (under mixed precision the layers hold them
            in a wrapper that casts).
        own: those of them that it does not share with the network it is a sibling of.
    """

    def __init__(self, build: Callable[[], tf_keras.Model]) -> None:
        self._build = build
        self.created: list[Any] = []
        self.own: list[Any] = []

        def record(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
            self.created.append(next_creator(**kwargs))
            return self.created[-1]

        with tf.variable_creator_scope(record):
            self.network = build()

    def sibling(self, choose: Choose) -> Blueprint:
        """Builds the network again.

        Args:
            choose: gives the variable to use where the original used its first argument; the other two create a
                variable as the layer wants it: `next_creator(**kwargs)`.

        Returns:
            The sibling.

        Raises:
            RuntimeError: if the network was not built in the same order again.
        """
        originals = iter(self.created)

        def replay(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
            return choose(_next(originals), next_creator, kwargs)

        with tf.variable_creator_scope(replay):
            sibling = Blueprint(self._build)
        if next(originals, None) is not None or any(
            mine.shape != other.shape for mine, other in zip(self.created, sibling.created, strict=True)
        ):
            raise RuntimeError(_NOT_THE_SAME)
        shared = {id(variable) for variable in self.created}
        sibling.own = [variable for variable in sibling.created if id(variable) not in shared]
        return sibling

    def twin(self) -> Blueprint:
        """A sibling with batch norms of its own that shares all other variables."""
        own = {id(raw(variable)) for layer in batch_norms(self.network) for variable in layer.weights}

        def choose(original: Any, next_creator: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
            return next_creator(**kwargs) if id(original) in own else original

        return self.sibling(choose)

    def raw_trainable(self) -> list[Any]:
        """The network's trainable variables, unwrapped."""
        return [raw(variable) for variable in self.network.trainable_variables]


def raw(variable: Any) -> Any:
    """The variable that the strategy made, out of mixed precision's wrapper that casts."""
    return getattr(variable, "_variable", variable) if "AutoCast" in type(variable).__name__ else variable


def batch_norms(network: tf_keras.Model) -> list[Any]:
    """All batch normalisation layers of a network, synchronised ones too, that it calls."""
    base = tf_keras.layers.BatchNormalization.__mro__[1]
    return [layer for layer in network._flatten_layers() if isinstance(layer, base) and layer.built]


def normalise_by_batch(network: tf_keras.Model) -> None:
    """Has a network's batch norms use the statistics of this replica's batch and touch no moving average, for good.

    Meant for the network of an attack, which is to leave no trace in the statistics and to wait for no other replica.
    Frozen batch norms stay as they are: tf_keras has them use the moving averages in training, too. Only ever done to a
    sibling that nobody else uses.
    """
    for layer in batch_norms(network):
        if not layer.trainable:
            continue
        # Past Keras's tracking: this is no state of the layer.
        object.__setattr__(layer, "call", _batch_statistics_call(layer))


def _batch_statistics_call(layer: Any) -> Callable[..., Any]:
    def call(inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        del training
        axes = [axis % inputs.shape.rank for axis in layer.axis]
        shape = [inputs.shape[i] if i in axes else 1 for i in range(inputs.shape.rank)]
        x = tf.cast(inputs, tf.float32) if inputs.dtype in (tf.float16, tf.bfloat16) else inputs
        channels = inputs.shape[axes[0]]
        gamma = tf.ones([channels], x.dtype) if layer.gamma is None else tf.cast(layer.gamma, x.dtype)
        beta = tf.zeros([channels], x.dtype) if layer.beta is None else tf.cast(layer.beta, x.dtype)
        if axes == [3] and inputs.shape.rank == 4:
            y, _, _ = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=layer.epsilon, is_training=True)
        else:
            mean, variance = tf.nn.moments(x, [i for i in range(x.shape.rank) if i not in axes], keepdims=True)
            y = tf.nn.batch_normalization(
                x, mean, variance, tf.reshape(beta, shape), tf.reshape(gamma, shape), layer.epsilon
            )
        return tf.cast(y, inputs.dtype)

    return call


def _next(originals: Iterator[Any]) -> Any:
    original = next(originals, None)
    if original is None:
        raise RuntimeError(_NOT_THE_SAME)
    return original


_NOT_THE_SAME = (
    "Building the network again created other variables than before; task.conadv needs a backbone that is built the "
    "same way each time."
)
