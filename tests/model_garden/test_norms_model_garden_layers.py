"""Every rule for a layer of Model Garden against the slow reference, or against batches of one example."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.nlp.modeling.layers import (
    MaskedLM,
    OnDeviceEmbedding,
    PositionEmbedding,
    RelativePositionBias,
    RelativePositionEmbedding,
    TransformerEncoderBlock,
)
from official.nlp.modeling.layers.mobile_bert_layers import NoNorm
from official.nlp.modeling.layers.transformer_encoder_block import RMSNorm
from official.vision.modeling.backbones.vit import AddPositionEmbs, TokenLayer
from official.vision.modeling.layers import nn_blocks, nn_layers
from tf_keras import layers as L
from tf_keras_norm_reference import (
    assert_measured_right,
    assert_norms_in_half_precision,
    cross_entropy,
    measured,
    randomize,
    reference,
)

from tf_largebatch.model_garden import rules  # noqa: F401  (it registers)

BATCH = 4


class Tokens(L.Layer):
    """Token and position embeddings of the inputs' first feature, as ids."""

    def __init__(self, one_hot):
        super().__init__()
        self.tokens = OnDeviceEmbedding(15, 5, use_one_hot=one_hot, scale_factor=1.5)
        self.positions = PositionEmbedding(10)

    def call(self, x):
        embedded = self.tokens(tf.cast(tf.abs(x[..., 0]) * 4, tf.int32))
        waves = RelativePositionEmbedding(6)(embedded)[:, :5]
        return embedded + self.positions(embedded) + tf.cast(waves, embedded.dtype)


class Biased(L.Layer):
    def __init__(self):
        super().__init__()
        self.bias = RelativePositionBias(2, relative_attention_num_buckets=8, relative_attention_max_distance=6)

    def call(self, x):
        return tf.nn.softmax(self.bias(x, x[:, :3]) * tf.reduce_sum(x, axis=2)[:, tf.newaxis, :, tf.newaxis])


def multi_query(layer):
    class Attention(L.Layer):
        def __init__(self):
            super().__init__()
            self.attention = layer(2, 3, 4)

        def call(self, x):
            return self.attention((x, x[:, :2]))

    return Attention()


CASES = {
    "position embeddings": ((6, 5), lambda: [AddPositionEmbs(tf_keras.initializers.RandomNormal(0.1))]),
    "another grid": ((12, 5), lambda: [AddPositionEmbs(tf_keras.initializers.RandomNormal(0.1), (3, 2), (4, 3))]),
    "class token": ((6, 5), lambda: [TokenLayer()]),
    "layer scale": ((6, 5), lambda: [nn_blocks.LayerScale(0.1)]),
    "mobilenet's layer scale": ((3, 3, 5), lambda: [nn_blocks.MNV4LayerScale(0.1)]),
    "scalar scale": ((3, 4, 5), lambda: [nn_layers.Scale()]),
    "squeeze and excitation": ((4, 4, 6), lambda: [nn_layers.SqueezeExcitation(6, 6, 0.5), L.ReLU()]),
    "transformer block": (
        (4, 6),
        lambda: [nn_blocks.TransformerEncoderBlock(2, 8, "gelu", norm_first=True, layer_scale_init_value=0.1)],
    ),
    "text transformer block": ((4, 6), lambda: [TransformerEncoderBlock(2, 8, "gelu")]),
    "text transformer block, RMS": (
        (4, 6),
        lambda: [TransformerEncoderBlock(2, 8, "relu", norm_first=True, use_rms_norm=True, num_kv_heads=1)],
    ),
    "tokens": ((6, 2), lambda: [Tokens(one_hot=False)]),
    "tokens, one-hot": ((6, 2), lambda: [Tokens(one_hot=True)]),
    "positions of axis 2": ((3, 4, 5), lambda: [PositionEmbedding(7, seq_axis=2)]),
    "relative positions": ((5, 4), lambda: [Biased()]),
    "multi-query attention 1": ((5, 6), lambda: [multi_query(nn_blocks.MultiQueryAttentionLayerV1)]),
    "multi-query attention 2": ((5, 6), lambda: [multi_query(nn_blocks.MultiQueryAttentionLayerV2)]),
    "RMS norm": ((5, 6), lambda: [RMSNorm()]),
    "no norm": ((5, 6), lambda: [NoNorm()]),
}


def classifier(case):
    shape, make = CASES[case]
    model = tf_keras.Sequential([L.Input(shape), *make(), L.Flatten(), L.Dense(3)])
    randomize(model)
    return model


def batch(shape, size=BATCH):
    rng = np.random.default_rng(1)
    return rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, 3, size)


@pytest.mark.parametrize("case", CASES)
def test_norms_gradients_and_output(case):
    assert_measured_right(classifier(case), *batch(CASES[case][0]))


@pytest.mark.long
def test_inside_a_function_with_autograph():
    model = classifier("transformer block")
    x, y = batch(CASES["transformer block"][0])
    expected = reference(model, x, y)
    found = tf.function(lambda x, y: measured(model, x, y)[1].gradient_norms().unpack())(tf.constant(x), tf.constant(y))
    for index, s in enumerate(found):
        np.testing.assert_allclose(s, expected[index].sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.each_value
@pytest.mark.parametrize("policy, rtol", [("mixed_float16", 2e-2), ("mixed_bfloat16", 8e-2)])
@pytest.mark.parametrize("case", ["transformer block", "class token", "tokens", "RMS norm"])
def test_half_precision(policy, rtol, case):
    tf_keras.mixed_precision.set_global_policy(policy)
    assert_norms_in_half_precision(classifier(case), *batch(CASES[case][0]), rtol)


@pytest.mark.parametrize("output", ["logits", "predictions"])
def test_masked_language_modeling_with_a_tied_table(output):
    """The table's contributions are added over the lookup and the product; the reference is each example alone."""
    ids = L.Input((6,), dtype="int32")
    where = L.Input((2,), dtype="int32")
    tokens = OnDeviceEmbedding(9, 4)
    hidden = L.Dense(4, activation="tanh")(tokens(ids))
    model = tf_keras.Model([ids, where], MaskedLM(tokens.embeddings, "gelu", output=output)(hidden, where))
    randomize(model)
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 9, (BATCH, 6)), rng.integers(0, 6, (BATCH, 2))]
    y = rng.integers(0, 9, (BATCH, 2))

    def loss(rows):
        return lambda predictions: cross_entropy(y[rows], predictions)

    from tf_largebatch.norms import measure
    from tf_largebatch.tf_keras.norms import TF_KERAS

    variables = model.trainable_variables
    output, found = measure(model, lambda: model(x), loss(slice(None)), variables, BATCH, TF_KERAS)
    np.testing.assert_allclose(output, model(x), rtol=1e-5, atol=1e-5)
    for i in range(BATCH):
        rows = slice(i, i + 1)
        with tf.GradientTape() as tape:
            value = loss(rows)(model([t[rows] for t in x]))
        for v, g, squares in zip(variables, tape.gradient(value, variables), found.squared_norms, strict=True):
            expected = np.linalg.norm(tf.convert_to_tensor(g).numpy()) / BATCH
            np.testing.assert_allclose(np.sqrt(squares[i]), expected, rtol=1e-4, atol=1e-6, err_msg=v.name)
