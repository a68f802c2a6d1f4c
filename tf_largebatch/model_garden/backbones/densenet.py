"""DenseNet-BC as a backbone for Model Garden."""

from __future__ import annotations

from typing import Any

import tf_keras
from official.modeling import hyperparams, tf_utils
from official.vision.modeling.backbones import factory

# Layers of each dense block; table 1 of the paper.
BLOCK_REPEATS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}

layers = tf_keras.layers


@tf_keras.utils.register_keras_serializable(package="tf_largebatch")
class DenseNet(tf_keras.Model):
    """DenseNet-BC: dense blocks of 1 x 1 bottlenecks and 3 x 3 convolutions, halved in transitions.

    Huang, Liu, van der Maaten, Weinberger: "Densely Connected Convolutional Networks", CVPR 2017, arXiv 1608.06993,
    table 1: each layer of a block adds `growth_rate` channels to its input by BN-activation-conv(1, 4 growth_rate)-
    BN-activation-conv(3, growth_rate); transitions halve the channels and the resolution.

    Outputs: `{"2": ..., "3": ..., "4": ..., "5": ...}`, the normalized and activated features after each block, at
    strides 4 to 32.

    Args:
        model_id: 121, 169 or 201.
        input_specs: Specs of the input, [batch, height, width, channels].
        growth_rate: Channels that each layer adds.
        block_repeats: Layers of each block in place of those of `model_id`.
        activation: Name of the activation.
        use_sync_bn: Whether batch norms share their statistics among replicas.
        norm_momentum: Momentum of the moving averages.
        norm_epsilon: Added to the variance.
        kernel_initializer: Of the convolutions.
        kernel_regularizer: Of the convolutions.

    Raises:
        ValueError: For an unknown `model_id`.
    """

    def __init__(
        self,
        model_id: int,
        input_specs: Any = None,
        growth_rate: int = 32,
        block_repeats: tuple[int, ...] | None = None,
        activation: str = "relu",
        use_sync_bn: bool = False,
        norm_momentum: float = 0.99,
        norm_epsilon: float = 0.001,
        kernel_initializer: str = "he_normal",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if block_repeats is None:
            if model_id not in BLOCK_REPEATS:
                raise ValueError(f"model_id must be one of {sorted(BLOCK_REPEATS)}; received model_id={model_id!r}.")
            block_repeats = BLOCK_REPEATS[model_id]
        self._config = {
            "model_id": model_id,
            "growth_rate": growth_rate,
            "block_repeats": list(block_repeats),
            "activation": activation,
            "use_sync_bn": use_sync_bn,
            "norm_momentum": norm_momentum,
            "norm_epsilon": norm_epsilon,
            "kernel_initializer": kernel_initializer,
            "kernel_regularizer": kernel_regularizer,
        }
        shape = (None, None, 3) if input_specs is None else input_specs.shape[1:]
        inputs = layers.Input(shape=shape)
        x = self._conv(inputs, 2 * growth_rate, 7, strides=2)
        x = layers.MaxPool2D(3, strides=2, padding="same")(self._norm(x))
        endpoints = {}
        for i, repeats in enumerate(block_repeats):
            for _ in range(repeats):
                new = self._conv(self._norm(x), 4 * growth_rate, 1)
                x = layers.Concatenate()([x, self._conv(self._norm(new), growth_rate, 3)])
            normed = self._norm(x)
            endpoints[str(i + 2)] = normed
            if i + 1 < len(block_repeats):
                x = layers.AveragePooling2D(2, padding="same")(self._conv(normed, x.shape[-1] // 2, 1))
        self._output_specs = {level: endpoint.shape for level, endpoint in endpoints.items()}
        super().__init__(inputs=inputs, outputs=endpoints, **kwargs)

    def _norm(self, x: Any) -> Any:
        config = self._config
        x = layers.BatchNormalization(
            momentum=config["norm_momentum"], epsilon=config["norm_epsilon"], synchronized=config["use_sync_bn"]
        )(x)
        return tf_utils.get_activation(config["activation"], use_keras_layer=True)(x)

    def _conv(self, x: Any, filters: int, kernel_size: int, strides: int = 1) -> Any:
        return layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer=self._config["kernel_initializer"],
            kernel_regularizer=self._config["kernel_regularizer"],
        )(x)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor but for `input_specs`."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DenseNet:
        """Makes the object that `get_config` describes."""
        del custom_objects
        return cls(**config)

    @property
    def output_specs(self) -> dict[str, Any]:
        """`{level: shape}` of the outputs."""
        return self._output_specs


@factory.register_backbone_builder("densenet")
def build_densenet(
    input_specs: tf_keras.layers.InputSpec,
    backbone_config: hyperparams.OneOfConfig,
    norm_activation_config: hyperparams.Config,
    l2_regularizer: Any = None,
) -> tf_keras.Model:
    """Builds the backbone `densenet` from its config, for Model Garden's factory."""
    config = backbone_config.get()
    return DenseNet(
        model_id=config.model_id,
        input_specs=input_specs,
        growth_rate=config.growth_rate,
        block_repeats=config.block_repeats,
        activation=norm_activation_config.activation,
        use_sync_bn=norm_activation_config.use_sync_bn,
        norm_momentum=norm_activation_config.norm_momentum,
        norm_epsilon=norm_activation_config.norm_epsilon,
        kernel_regularizer=l2_regularizer,
    )
