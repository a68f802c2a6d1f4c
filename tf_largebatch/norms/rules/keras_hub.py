"""Layers of KerasHub with variables of their own. KerasHub is not imported: the table names their classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import Rule
from tf_largebatch.norms.rules.bias import Bias, add_bias
from tf_largebatch.norms.rules.dense import MatMul
from tf_largebatch.norms.rules.elementwise import scaled
from tf_largebatch.norms.rules.embedding import Lookup
from tf_largebatch.norms.shapes import of_examples, static_or_dynamic_shape, static_or_dynamic_size
from tf_largebatch.norms.sums import squared_norms_and_sum, sum_squares_per_example
from tf_largebatch.norms.view import view


@dataclasses.dataclass(frozen=True)
class Placed:
    """`y[:, at : at + count] = ... + w[first : first + count]`, the same for every example.

    `w` has shape [(1,) rows, ..., D] and `y` [B, positions, ..., D].
    """

    shape: tuple[int, ...]
    at: int
    first: int
    count: int

    def contributions(self, d: Any, examples: slice) -> Any:
        """Returns `G_i = d_{i, at : at + count}` in its rows, float32, shape [b, *w.shape]."""
        part = ops.cast(of_examples(d, examples)[:, self.at : self.at + self.count], "float32")
        rows = math.prod(self.shape[:-1])
        part = ops.reshape(part, [-1, self.count, self.shape[-1]])
        padded = ops.pad(part, [[0, 0], [self.first, rows - self.first - self.count], [0, 0]])
        return ops.reshape(padded, [-1, *self.shape])

    def squared_norms(self, d: Any, examples: slice) -> Any:
        """Returns `||d_{i, at : at + count}||^2`."""
        return sum_squares_per_example(of_examples(d, examples)[:, self.at : self.at + self.count])

    def norms_and_gradient(self, d: Any) -> tuple[Any, Any]:
        """The contributions add up to the gradient."""
        return squared_norms_and_sum(self.contributions(d, slice(None)))


def rms_normalization(name: str, without: float) -> Callable[..., Any]:
    """Returns the rule of a layer that multiplies by its variable of this name, or by 1 + the variable, last.

    Args:
        name: The attribute.
        without: The value with which the layer only normalizes: 1, or 0 where it adds 1 to the variable.
    """

    def rule(layer: Any, recorder: Recorder, x: Any) -> Any:
        """Computes `y = scale z` or `y = (1 + scale) z`: `G_i = sum_t d_{i,t} z_{i,t}`."""
        z = type(layer).call(view(layer, **{name: without}), x)
        y = scaled(recorder, getattr(layer, name), z)
        return y if without else z + y

    return rule


def position_embedding(layer: Any, recorder: Recorder, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
    """Returns `y_{i,t} = w_{start + t}`, or `w` at the given positions."""
    table = layer.position_embeddings
    value = recorder.value(table)
    y = type(layer).call(view(layer, position_embeddings=value), inputs, start_index=start_index, positions=positions)
    count = inputs.shape[-2]
    if positions is None and isinstance(start_index, int) and isinstance(count, int) and len(inputs.shape) == 3:
        return recorder.record(table, y, Placed(tuple(table.shape), 0, start_index, count))
    if positions is None:
        positions = ops.arange(static_or_dynamic_size(inputs, -2)) + start_index
    ids = ops.broadcast_to(ops.cast(positions, "int32"), static_or_dynamic_shape(inputs)[:-1])
    return recorder.record(table, y, Lookup(ids, table.shape[0]))


def relative_embedding(layer: Any, recorder: Recorder, inputs: Any) -> Any:
    """DeBERTa's: a normalized table, the same for every example. It is repeated before it is normalized."""
    del inputs
    return layer.layer_norm(recorder.per_example(layer.rel_embeddings))


def masked_lm_head(layer: Any, recorder: Recorder, inputs: Any, mask_positions: Any) -> Any:
    """Computes `y = activation(norm(dense(x at the positions)) W + b)`; `W` may be the token embedding's."""
    x = ops.take_along_axis(inputs, ops.expand_dims(mask_positions, axis=-1), axis=1)
    x = layer._intermediate_layer_norm(layer._intermediate_dense(x))
    if layer.token_embedding:
        y = layer.token_embedding(x, reverse=True)
    else:
        y = recorder.record(layer._kernel, ops.matmul(x, recorder.value(layer._kernel)), MatMul(x))
    y = add_bias(recorder, layer._bias, ops.cast(y, layer.compute_dtype), layer._bias.shape)
    return y if layer.activation is None else layer.activation(y)


def tokens_and_positions(**at: int | None) -> Callable[..., Any]:
    """Returns the rule of a layer that puts tokens in front of an image's patches and adds a table of positions.

    Args:
        **at: For each variable by its attribute the position of a token, None for a table of all positions. A layer
            need not have all of them.
    """

    def rule(layer: Any, recorder: Recorder, inputs: Any, **kwargs: Any) -> Any:
        """Returns `y_i = [tokens, patches_i] + positions`: `G_i` is `d_i` at the token's position, or all of it."""
        found = {name: getattr(layer, name, None) for name in at}
        variables = {name: v for name, v in found.items() if isinstance(v, keras.Variable)}
        values: dict[str, Any] = {name: recorder.value(v) for name, v in variables.items()}
        dropout = getattr(layer, "dropout", None)
        if dropout is not None:
            values["dropout"] = lambda t: t
        y = type(layer).call(view(layer, **values), inputs, **kwargs)
        for name, v in variables.items():
            shape, position = tuple(v.shape), at[name]
            whole = Bias(shape, shape) if position is None else Placed(shape, position, 0, 1)
            y = recorder.record(v, y, whole)
        return y if dropout is None else dropout(y)

    return rule


def refuse_mask_token(layer: Any) -> str | None:
    """The mask token takes the place of patches."""
    return "use_mask_token=True" if getattr(layer, "use_mask_token", False) else None


def relative_attention_bias(layer: Any, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """T5's attention with `w_{bucket(k - q)}` added to its scores.

    The table, of a few numbers, is repeated for each example before it is looked up.
    """

    def compute_bias(query_length: Any, key_length: Any, query_start_index: Any = 0) -> Any:
        repeated = recorder.per_example(layer.relative_attention_bias)  # [B, buckets, heads]
        relative = ops.arange(key_length)[None, :] - (ops.arange(query_length)[:, None] + query_start_index)
        buckets = layer._relative_position_bucket(
            relative,
            bidirectional=not layer.is_decoder,
            num_buckets=layer.relative_attention_buckets,
            max_distance=layer.relative_attention_max_distance,
        )
        return ops.transpose(ops.take(repeated, buckets, axis=1), [0, 3, 1, 2])

    return type(layer).call(view(layer, compute_bias=compute_bias), *args, **kwargs)


def layer_scale(layer: Any, recorder: Recorder, inputs: Any, training: bool | None = None) -> Any:
    """Computes `y = lambda x`: `G_i = sum_t d_{i,t} x_{i,t}`."""
    return scaled(recorder, layer.lambda1, inputs)


def _models(*names: str) -> tuple[str, ...]:
    return tuple(f"keras_hub.src.models.{name}" for name in names)


def _layers(*names: str) -> tuple[str, ...]:
    return tuple(f"keras_hub.src.layers.modeling.{name}" for name in names)


SCALES = _models(
    *("gemma4.gemma4_layers.RMSNormalization", "gemma3n.rms_normalization.Gemma3nRMSNorm"),
    *("gpt_oss.gpt_oss_layer_norm.GptOssLayerNormalization", "llama.llama_layernorm.LlamaLayerNorm"),
    *("mistral.mistral_layer_norm.MistralLayerNormalization", "mixtral.mixtral_layer_norm.MixtralLayerNormalization"),
    *("phi3.phi3_layernorm.Phi3LayerNorm", "qwen.qwen_layernorm.QwenLayerNorm"),
    *("qwen3.qwen3_layernorm.Qwen3LayerNorm", "qwen3_moe.qwen3_moe_layernorm.Qwen3MoeLayerNorm"),
    *("qwen_moe.qwen_moe_layernorm.QwenMoeLayerNorm", "roformer_v2.roformer_v2_attention.RoformerNorm"),
)
ONE_PLUS_SCALES = _models(
    *("gemma.rms_normalization.RMSNormalization", "gemma3.gemma3_layers.RMSNormalization"),
    "qwen3_5.qwen3_5_layers.Qwen3_5LayerNorm",
)
IMAGE_EMBEDDINGS = _models(
    *("vit.vit_layers.ViTPatchingAndEmbedding", "deit.deit_layers.DeiTEmbeddings"),
    *("clip.clip_layers.CLIPVisionEmbedding", "metaclip_2.metaclip_2_layers.MetaCLIP2VisionEmbedding"),
    "vit_det.vit_layers.AddPositionalEmbedding",
)
image_embedding = tokens_and_positions(
    class_token=0, class_embedding=0, distillation_token=1, position_embedding=None, pos_embed=None
)

TABLE: tuple[tuple[Rule, tuple[str, ...], dict[str, Any]], ...] = (
    (rms_normalization("scale", 1.0), (*SCALES, *_layers("rms_normalization.RMSNormalization")), {}),
    (rms_normalization("scale", 0.0), ONE_PLUS_SCALES, {}),
    (rms_normalization("weight", 1.0), _models("t5.t5_layer_norm.T5LayerNorm"), {}),
    (layer_scale, _models("dinov2.dinov2_layers.DINOV2LayerScale"), {}),
    (position_embedding, _layers("position_embedding.PositionEmbedding"), {}),
    (relative_embedding, _models("deberta_v3.relative_embedding.RelativeEmbedding"), {}),
    (relative_attention_bias, _models("t5.t5_multi_head_attention.T5MultiHeadAttention"), {}),
    (masked_lm_head, _layers("masked_lm_head.MaskedLMHead"), {}),
    (image_embedding, IMAGE_EMBEDDINGS, {"refuse": refuse_mask_token}),
)
