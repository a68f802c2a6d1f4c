"""The table layer -> rule. Importing this package registers every row with `KERAS`.

A row is a rule, the layer classes that it computes, and what `Registry.register` takes besides: `refuse` gives the
reason why a particular layer cannot be measured; `covers` the layers inside it that the rule records; `wraps` marks a
rule that runs for the sake of the layers inside. `methods` are the methods that a subclass must not override, where the
rule runs the layer's own code for some that `call` reaches.

The rows of keras_hub.py name classes of KerasHub, which need not be installed. Layers of your own need no row:
`tf_largebatch.norms.register` is a decorator for their rules.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as L

from tf_largebatch.norms.registry import KERAS, Rule
from tf_largebatch.norms.rules import keras_hub
from tf_largebatch.norms.rules.attention import additive_attention, attention
from tf_largebatch.norms.rules.convolution import convolution, depthwise_convolution, separable_convolution
from tf_largebatch.norms.rules.convolution_transpose import transposed_convolution
from tf_largebatch.norms.rules.dense import dense, refuse_lora
from tf_largebatch.norms.rules.einsum import einsum_dense, refuse_einsum
from tf_largebatch.norms.rules.elementwise import layer_scale, prelu, rms_normalization, spectral_normalization
from tf_largebatch.norms.rules.embedding import embedding
from tf_largebatch.norms.rules.normalization import (
    GROUP_NORM_METHODS,
    batch_normalization,
    group_normalization,
    layer_normalization,
)
from tf_largebatch.norms.rules.recurrent import (
    bidirectional,
    cell_alone,
    covered_cells,
    recurrent,
    refuse_cell,
    refuse_recurrent,
)
from tf_largebatch.norms.rules.reversible_embedding import reversible_embedding
from tf_largebatch.norms.rules.spectrogram import stft_spectrogram
from tf_largebatch.norms.rules.ternary_dense import ternary_dense
from tf_largebatch.norms.rules.time_distributed import time_distributed

RECURRENT = (L.RNN, L.SimpleRNN, L.LSTM, L.GRU, L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)
RECURRENT_METHODS = ("call", "inner_loop", "_maybe_config_dropout_masks", "get_initial_state")
# ConvNeXt's layer, which Keras does not export.
LAYER_SCALE = f"{keras.applications.ConvNeXtTiny.__module__}.LayerScale"
# Keras has it from 3.16 on.
TERNARY_DENSE = f"{L.Dense.__module__.rpartition('.')[0]}.ternary_dense.TernaryDense"

TABLE: tuple[tuple[Rule, tuple[type | str, ...], dict[str, Any]], ...] = (
    (dense, (L.Dense,), {"refuse": refuse_lora}),
    (ternary_dense, (TERNARY_DENSE,), {}),
    (einsum_dense, (L.EinsumDense,), {"refuse": refuse_einsum}),
    (convolution, (L.Conv1D, L.Conv2D, L.Conv3D), {"refuse": refuse_lora}),
    (depthwise_convolution, (L.DepthwiseConv1D, L.DepthwiseConv2D), {}),
    (separable_convolution, (L.SeparableConv1D, L.SeparableConv2D), {}),
    (transposed_convolution, (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose), {}),
    (stft_spectrogram, (L.STFTSpectrogram,), {"methods": ("call", "_apply_conv")}),
    (embedding, (L.Embedding,), {"refuse": refuse_lora}),
    (reversible_embedding, (L.ReversibleEmbedding,), {"refuse": refuse_lora}),
    (batch_normalization, (L.BatchNormalization,), {"methods": ("call", "_compose_transforms")}),
    (layer_normalization, (L.LayerNormalization,), {"methods": ("call",)}),
    (group_normalization, (L.GroupNormalization,), {"methods": GROUP_NORM_METHODS}),
    (rms_normalization, (L.RMSNormalization,), {}),
    (prelu, (L.PReLU,), {}),
    (layer_scale, (LAYER_SCALE,), {}),
    (attention, (L.Attention,), {"methods": ("call", "_calculate_scores")}),
    (additive_attention, (L.AdditiveAttention,), {"methods": ("call", "_calculate_scores")}),
    (recurrent, RECURRENT, {"methods": RECURRENT_METHODS, "covers": covered_cells, "refuse": refuse_recurrent}),
    (cell_alone, (L.SimpleRNNCell, L.LSTMCell, L.GRUCell), {"refuse": refuse_cell}),
    (bidirectional, (L.Bidirectional,), {"methods": (), "wraps": True}),
    (time_distributed, (L.TimeDistributed,), {"wraps": True}),
    (spectral_normalization, (L.SpectralNormalization,), {"wraps": True}),
)

for _rule, _layer_classes, _options in (*TABLE, *keras_hub.TABLE):
    KERAS.register(*_layer_classes, **_options)(_rule)
