"""Networks that can be rebuilt: a second network that shares chosen variables with the first one.

tf_keras cannot run a model with batch norms or weights other than its own. Rerouting layers while they run would
conflict with the interleaved replica threads of `MirroredStrategy`. So the function that built the network builds it
again, and each variable that the second network asks for is either the first one's or a new one. Both are plain models,
and the first one stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from tf_largebatch.keras_internals import layers_within, without_autocast

Choose = Callable[[Any, Callable[..., Any], dict[str, Any]], Any]


class RebuildableNetwork:
    """A network, the variables created by building it in their order, and how to build it again.

    Args:
        build: Builds the network. It must create the same variables in the same order each time.

    Attributes:
        network: The network.
        created: Its variables as the distribution strategy made them. (Under mixed precision the layers hold them in a
            wrapper that casts.)
        own: Those of them that it does not share with the network from which it was rebuilt.
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

    def rebuild(self, choose: Choose) -> RebuildableNetwork:
        """Builds the network again.

        Args:
            choose: Gives the variable to use where the first network used its first argument. The other two arguments
                create a variable as the layer wants it: `next_creator(**kwargs)`.

        Returns:
            The second network.

        Raises:
            RuntimeError: If the network was not built in the same order again.
        """
        originals = iter(self.created)

        def replay(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
            return choose(_next(originals), next_creator, kwargs)

        with tf.variable_creator_scope(replay):
            rebuilt = RebuildableNetwork(self._build)
        if next(originals, None) is not None or any(
            mine.shape != other.shape for mine, other in zip(self.created, rebuilt.created, strict=True)
        ):
            raise RuntimeError(_NOT_THE_SAME)
        shared = {id(variable) for variable in self.created}
        rebuilt.own = [variable for variable in rebuilt.created if id(variable) not in shared]
        return rebuilt

    def with_auxiliary_batch_norms(self) -> RebuildableNetwork:
        """Builds the network again with batch norms of its own; all other variables are shared."""
        own = {id(without_autocast(variable)) for layer in batch_norms(self.network) for variable in layer.weights}

        def choose(original: Any, next_creator: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
            return next_creator(**kwargs) if id(original) in own else original

        return self.rebuild(choose)

    def raw_trainable(self) -> list[Any]:
        """Returns the network's trainable variables, unwrapped."""
        return [without_autocast(variable) for variable in self.network.trainable_variables]


def batch_norms(network: tf_keras.Model) -> list[Any]:
    """Returns all batch-normalization layers that a network calls, synchronized ones too."""
    base = tf_keras.layers.BatchNormalization.__mro__[1]
    return [layer for layer in layers_within(network) if isinstance(layer, base) and layer.built]


def normalize_by_batch(network: tf_keras.Model) -> None:
    """Makes a network's batch norms use the statistics of this replica's batch and change no moving average, for good.

    It is meant for the network of an attack, which must not change the statistics and must not wait for other replicas.
    Frozen batch norms stay as they are: in tf_keras they use the moving averages in training, too. The network must be
    one that nothing else uses.
    """
    for layer in batch_norms(network):
        if not layer.trainable:
            continue
        # Past Keras's tracking: the function is no state of the layer.
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
