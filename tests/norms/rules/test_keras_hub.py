"""Rules for KerasHub's layers against a loop over batches of one: stand-ins, and the layers if it is installed."""

from __future__ import annotations

import importlib

import keras
import numpy as np
import pytest
from comparing import norms_of, norms_one_by_one
from keras import layers as L
from keras import ops

from tf_largebatch.norms import KERAS
from tf_largebatch.norms.rules import keras_hub

LOSS = keras.losses.MeanSquaredError()
BATCH = 3


def stand_in_for(qualified_name):
    """Gives a class the name by which KerasHub's is known."""

    def named(cls):
        cls.__module__, cls.__qualname__ = qualified_name.rsplit(".", 1)
        return cls

    return named


def rms(x):
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)


@stand_in_for("keras_hub.src.models.llama.llama_layernorm.LlamaLayerNorm")
class Scale(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return ops.cast(rms(ops.cast(x, "float32")) * self.scale, self.compute_dtype)


@stand_in_for("keras_hub.src.models.gemma.rms_normalization.RMSNormalization")
class OnePlusScale(Scale):
    def call(self, x):
        return ops.cast(rms(ops.cast(x, "float32")) * (1 + ops.cast(self.scale, "float32")), self.compute_dtype)


@stand_in_for("keras_hub.src.layers.modeling.position_embedding.PositionEmbedding")
class Positions(L.Layer):
    def build(self, shape):
        self.position_embeddings = self.add_weight(shape=(8, shape[-1]), name="embeddings")

    def call(self, inputs, start_index=0, positions=None):
        table = ops.convert_to_tensor(self.position_embeddings)
        table = (
            table[start_index : start_index + inputs.shape[1]] if positions is None else ops.take(table, positions, 0)
        )
        return ops.broadcast_to(table, ops.shape(inputs))


@stand_in_for("keras_hub.src.models.deit.deit_layers.DeiTEmbeddings")
class TokensAndPositions(L.Layer):
    def build(self, shape):
        self.class_token = self.add_weight(shape=(1, 1, shape[-1]), name="class_token")
        self.distillation_token = self.add_weight(shape=(1, 1, shape[-1]), name="distillation_token")
        self.position_embedding = self.add_weight(shape=(1, shape[1] + 2, shape[-1]), name="positions")
        self.dropout = L.Dropout(0.0)

    def call(self, inputs):
        tokens = [ops.tile(t, (ops.shape(inputs)[0], 1, 1)) for t in (self.class_token, self.distillation_token)]
        return self.dropout(ops.concatenate([*tokens, inputs], axis=1) + self.position_embedding)


@stand_in_for("keras_hub.src.models.deberta_v3.relative_embedding.RelativeEmbedding")
class Relative(L.Layer):
    def build(self, shape):
        self.rel_embeddings = self.add_weight(shape=(5, shape[-1]), name="table")
        self.layer_norm = L.LayerNormalization()
        self.layer_norm.build((None, 5, shape[-1]))

    def call(self, inputs):
        return ops.repeat(self.layer_norm(self.rel_embeddings[None]), ops.shape(inputs)[0], axis=0)


STAND_INS = {
    "scale": Scale,
    "one plus scale": OnePlusScale,
    "positions": Positions,
    "tokens and positions": TokensAndPositions,
    "relative": Relative,
}


def through(layer, x):
    """The output of a model with a layer of rank 3, which may or may not depend on its input."""
    return L.Dense(2)(L.Flatten()(layer(x) * L.Dense(4)(x)[:, :1]))


def assert_equal_to_batches_of_one(model, x):
    rng = np.random.default_rng(2)
    for v in model.trainable_variables:
        v.assign(v + 0.3 * rng.normal(size=v.shape).astype("float32"))
    y = np.ones(model(x).shape, "float32")
    found = norms_of(model, x, y, LOSS)
    assert set(found) == {v.path for v in model.trainable_variables}
    for path, norms in norms_one_by_one(model, x, y, LOSS).items():
        np.testing.assert_allclose(found[path], norms, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_class_is_known_by_its_name(name):
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, through(STAND_INS[name](), inputs))
    assert_equal_to_batches_of_one(model, np.random.default_rng(0).normal(size=(BATCH, 3, 4)).astype("float32"))


@pytest.mark.parametrize("positions", [False, True])
def test_positions_that_do_not_start_at_zero(positions):
    inputs = keras.Input((3, 4))
    ids = ops.convert_to_tensor([[5, 2, 2]]) if positions else None
    y = Positions()(inputs, start_index=2, positions=ids)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(y * inputs)))
    assert_equal_to_batches_of_one(model, np.random.default_rng(0).normal(size=(BATCH, 3, 4)).astype("float32"))


def test_a_class_of_that_name_with_a_call_of_its_own_is_refused():
    class Mine(Scale):
        def call(self, x):
            return 2.0 * super().call(x)

    layer = Mine()
    layer.build((None, 4))
    assert KERAS.why_not(layer) == "Mine overrides Scale.call"


def named(qualified_name):
    module, name = qualified_name.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


NORMS = (*keras_hub.SCALES, *keras_hub.ONE_PLUS_SCALES, *(rows[0] for _, rows, _ in keras_hub.TABLE[2:4]))


@pytest.mark.parametrize("name", NORMS, ids=lambda name: name.rsplit(".", 1)[-1])
def test_normalizations_of_keras_hub(name):
    pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    needs_width = any(kind in name for kind in ("Gemma3n", "DINOV2"))
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, through(named(name)(4) if needs_width else named(name)(), inputs))
    assert_equal_to_batches_of_one(model, np.random.default_rng(0).normal(size=(BATCH, 3, 4)).astype("float32"))


@pytest.mark.parametrize("tied", [False, True])
def test_masked_language_model_of_keras_hub(tied):
    hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    ids, at = keras.Input((5,), dtype="int32"), keras.Input((2,), dtype="int32")
    tokens = hub.layers.TokenAndPositionEmbedding(7, 6, 4)
    x = L.Dense(4, activation="tanh")(tokens(ids))
    head = hub.layers.MaskedLMHead(token_embedding=tokens.token_embedding) if tied else hub.layers.MaskedLMHead(7)
    model = keras.Model([ids, at], head(x, at))
    rng = np.random.default_rng(0)
    assert_equal_to_batches_of_one(model, [rng.integers(0, 7, (BATCH, 5)), rng.integers(0, 5, (BATCH, 2))])


@pytest.mark.parametrize("is_decoder", [False, True])
def test_relative_attention_bias_of_keras_hub(is_decoder):
    pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    attention = named("keras_hub.src.models.t5.t5_multi_head_attention.T5MultiHeadAttention")
    sizes = {"is_decoder": is_decoder, "hidden_dim": 4, "key_value_dim": 2, "num_heads": 2, "dropout": 0.0}

    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = attention(use_relative_attention_bias=True, **sizes), attention(**sizes)
            self.head = L.Dense(2)

        def call(self, x, training=None):
            y, bias = self.first(x)[:2]
            y = self.second(y, position_bias=bias)[0]
            return self.head(ops.reshape(y, (-1, 20)))

    model = Two()
    x = np.random.default_rng(0).normal(size=(BATCH, 5, 4)).astype("float32")
    model(x)
    assert_equal_to_batches_of_one(model, x)
