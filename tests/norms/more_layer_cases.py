"""More layers x shapes for the tests of per-example norms: name -> (input shape without the batch, layers)."""

from __future__ import annotations

import keras
from keras import layers as L

rnn = {"return_sequences": True}


def masked(layer, *more):
    """The layer with a mask: steps whose first feature is zero or below are skipped, the first step among them."""

    def build(x):
        mask = keras.ops.greater(x[..., 0], 0.0)
        return chain(layer(x, mask=mask), *more)

    return build


def chain(x, *layers):
    for layer in layers:
        x = layer(x)
    return x


def of(*layers):
    """A chain of layers."""
    return lambda x: chain(x, *layers)


def with_initial_state(layer):
    def build(x):
        start = L.Dense(4)(x[:, 0])
        states = [start, L.Dense(4)(start)] if isinstance(layer, L.LSTM) else [start]
        outputs = layer(x, initial_state=states)
        return keras.ops.concatenate([keras.ops.reshape(y, (-1, 4 if y.ndim == 2 else 20)) for y in outputs], -1)

    return build


def attention(layer):
    return lambda x: layer([L.Dense(4)(x), L.Dense(4)(x)])


def heads(layer, **kwargs):
    return lambda x: layer(x, x, **kwargs)


TRANSPOSED = {
    "conv1d transpose": ((6, 3), lambda: of(L.Conv1DTranspose(4, 3, strides=2, padding="same", activation="relu"))),
    "conv2d transpose": ((4, 5, 3), lambda: of(L.Conv2DTranspose(4, 3))),
    "conv2d transpose, same, no bias": ((4, 5, 3), lambda: of(L.Conv2DTranspose(4, 3, padding="same", use_bias=False))),
    "conv2d transpose, stride 2, same": ((4, 5, 3), lambda: of(L.Conv2DTranspose(4, 3, strides=2, padding="same"))),
    "conv2d transpose, stride above kernel": (
        (4, 5, 3),
        lambda: of(L.Conv2DTranspose(4, 2, strides=3, padding="same")),
    ),
    "conv2d transpose, uneven": ((4, 5, 2), lambda: of(L.Conv2DTranspose(3, (2, 4), strides=(3, 2)))),
    "conv2d transpose, output padding": (
        (4, 5, 2),
        lambda: of(L.Conv2DTranspose(3, 3, strides=2, output_padding=1, padding="same")),
    ),
    "conv2d transpose, output padding, valid": (
        (4, 5, 2),
        lambda: of(L.Conv2DTranspose(3, (3, 2), strides=3, output_padding=2)),
    ),
    "conv3d transpose": ((3, 2, 3, 2), lambda: of(L.Conv3DTranspose(3, 2, strides=2, padding="same"))),
}

ELEMENTWISE = {
    "prelu": ((4, 3), lambda: of(L.Dense(5), L.PReLU())),
    "prelu, shared axes": ((4, 5, 3), lambda: of(L.PReLU(shared_axes=[1, 2]))),
    "rms norm": ((5, 6), lambda: of(L.RMSNormalization())),
    "rms norm, two axes": ((4, 5, 6), lambda: of(L.RMSNormalization(axis=[2, 3]))),
    "unit norm": ((5, 6), lambda: of(L.Dense(4), L.UnitNormalization())),
    "spectral norm of dense": ((6,), lambda: of(L.SpectralNormalization(L.Dense(5)))),
    "spectral norm of conv": (
        (5, 5, 3),
        lambda: of(L.SpectralNormalization(L.Conv2D(4, 3), power_iterations=2)),
    ),
    "stft": ((40, 2), lambda: of(L.STFTSpectrogram("log", frame_length=16, frame_step=8))),
    "stft, same, both parts": (
        (40, 2),
        lambda: of(L.STFTSpectrogram("stft", frame_length=16, frame_step=5, padding="same", expand_dims=True)),
    ),
}

RECURRENT = {
    "simple rnn": ((5, 3), lambda: of(L.SimpleRNN(4))),
    "simple rnn, no bias, sequences": ((5, 3), lambda: of(L.SimpleRNN(4, use_bias=False, **rnn))),
    "simple rnn, long and narrow": ((20, 3), lambda: of(L.SimpleRNN(2, activation="relu", **rnn))),
    "lstm": ((5, 3), lambda: of(L.LSTM(4))),
    "lstm, sequences, no bias": ((5, 3), lambda: of(L.LSTM(4, use_bias=False, **rnn))),
    "lstm, wide": ((3, 30), lambda: of(L.LSTM(20))),
    "lstm, backwards, unrolled": ((5, 3), lambda: of(L.LSTM(4, go_backwards=True, unroll=True, **rnn))),
    "lstm, other activations": ((5, 3), lambda: of(L.LSTM(4, "relu", "hard_sigmoid"))),
    "lstm, gates one by one": ((5, 3), lambda: of(L.LSTM(4, implementation=1))),
    "lstm, initial state, all states": (
        (5, 3),
        lambda: with_initial_state(L.LSTM(4, return_state=True, **rnn)),
    ),
    "lstm, masked": ((5, 3), lambda: masked(L.LSTM(4))),
    "lstm, masked, sequences": ((5, 3), lambda: masked(L.LSTM(4, **rnn))),
    "lstm, masked, zero output": ((5, 3), lambda: masked(L.LSTM(4, zero_output_for_mask=True, **rnn))),
    "lstm, masked, backwards": ((5, 3), lambda: masked(L.LSTM(4, go_backwards=True, **rnn))),
    "gru": ((5, 3), lambda: of(L.GRU(4))),
    "gru, no bias, sequences": ((5, 3), lambda: of(L.GRU(4, use_bias=False, **rnn))),
    "gru, initial state": ((5, 3), lambda: with_initial_state(L.GRU(4, return_state=True, **rnn))),
    "gru, reset before": ((5, 3), lambda: of(L.GRU(4, reset_after=False, **rnn))),
    "gru, reset before, no bias": ((5, 3), lambda: of(L.GRU(4, reset_after=False, use_bias=False))),
    "gru, reset before, masked": ((5, 3), lambda: masked(L.GRU(4, reset_after=False, **rnn))),
    "gru, masked": ((5, 3), lambda: masked(L.GRU(4, **rnn), L.GRU(3))),
    "gru, masked, unrolled": ((5, 3), lambda: masked(L.GRU(4, unroll=True, **rnn))),
    "bidirectional lstm": ((5, 3), lambda: of(L.Bidirectional(L.LSTM(4, **rnn)))),
    "bidirectional gru, masked, summed": (
        (5, 3),
        lambda: masked(L.Bidirectional(L.GRU(4, **rnn), merge_mode="sum")),
    ),
    "stacked cells": (
        (5, 3),
        lambda: of(L.RNN([L.LSTMCell(4), L.GRUCell(3, reset_after=False), L.GRUCell(2), L.SimpleRNNCell(4)], **rnn)),
    ),
    "stacked cells, masked": ((5, 3), lambda: masked(L.RNN([L.GRUCell(4), L.LSTMCell(3)]))),
    "conv lstm 1d": ((3, 6, 2), lambda: of(L.ConvLSTM1D(3, 3))),
    "conv lstm 2d": ((3, 5, 6, 2), lambda: of(L.ConvLSTM2D(2, 3, strides=2, padding="same", **rnn))),
    "conv lstm 2d, masked": (
        (3, 5, 6, 2),
        lambda: lambda x: L.ConvLSTM2D(2, (3, 2), use_bias=False)(x, mask=x[:, :, 0, 0, 0] > 0),
    ),
    "conv lstm 3d": ((2, 4, 3, 4, 1), lambda: of(L.ConvLSTM3D(2, 2, dilation_rate=1, **rnn))),
}

TIME = {
    "time distributed dense": ((5, 3), lambda: of(L.TimeDistributed(L.Dense(4)))),
    "time distributed conv and batch norm": (
        (3, 5, 5, 2),
        lambda: of(L.TimeDistributed(keras.Sequential([L.Conv2D(3, 3, use_bias=False), L.BatchNormalization()]))),
    ),
    "time distributed conv transpose": (
        (3, 4, 3, 2),
        lambda: of(L.TimeDistributed(L.Conv2DTranspose(3, 2, strides=2))),
    ),
    "time distributed depthwise": (
        (3, 5, 4, 2),
        lambda: of(L.TimeDistributed(L.DepthwiseConv2D(3, strides=2, depth_multiplier=2))),
    ),
    "time distributed lstm": ((3, 4, 2), lambda: of(L.TimeDistributed(L.LSTM(3)))),
}

ATTENTION = {
    "attention": ((5, 3), lambda: attention(L.Attention(use_scale=True))),
    "attention, concatenated": ((5, 3), lambda: attention(L.Attention(score_mode="concat"))),
    "attention, concatenated and scaled": (
        (5, 3),
        lambda: attention(L.Attention(use_scale=True, score_mode="concat")),
    ),
    "additive attention": ((5, 3), lambda: attention(L.AdditiveAttention())),
    "heads": ((5, 6), lambda: heads(L.MultiHeadAttention(2, 3))),
    "heads, causal, no bias": (
        (5, 6),
        lambda: heads(L.MultiHeadAttention(2, 3, use_bias=False), use_causal_mask=True),
    ),
    "heads over two axes": ((3, 4, 6), lambda: heads(L.MultiHeadAttention(2, 3, attention_axes=(1, 2)))),
    "heads, masked": (
        (5, 6),
        lambda: lambda x: L.MultiHeadAttention(2, 3)(x, x, attention_mask=x[:, None, :, 0] > -1.0),
    ),
    "grouped heads": ((5, 6), lambda: heads(L.GroupQueryAttention(3, 4, 2))),
    "grouped heads, causal": ((5, 6), lambda: heads(L.GroupQueryAttention(3, 2, 1), use_causal_mask=True)),
}
if keras.backend.backend() == "tensorflow":  # Keras on JAX cannot run a value_dim other than key_dim
    ATTENTION["heads, causal, values of another size"] = (
        (5, 6),
        lambda: heads(L.MultiHeadAttention(2, 3, value_dim=4, use_bias=False), use_causal_mask=True),
    )

CASES = {**TRANSPOSED, **ELEMENTWISE, **RECURRENT, **TIME, **ATTENTION}

# Layers that draw random numbers, which a second call of one layer alone does not repeat.
RANDOM_CASES = {
    "lstm, dropout": ((5, 3), lambda: of(L.LSTM(4, dropout=0.3, seed=1))),
    "lstm, both dropouts": ((5, 3), lambda: of(L.LSTM(4, dropout=0.3, recurrent_dropout=0.4, seed=1, **rnn))),
    "lstm, dropout, gates one by one": (
        (5, 3),
        lambda: of(L.LSTM(4, dropout=0.3, implementation=1, seed=1, use_cudnn=False)),
    ),
    "gru, both dropouts": ((5, 3), lambda: of(L.GRU(4, dropout=0.3, recurrent_dropout=0.4, seed=1, **rnn))),
    "gru, reset before, both dropouts": (
        (5, 3),
        lambda: of(L.GRU(4, dropout=0.3, recurrent_dropout=0.4, reset_after=False, seed=1)),
    ),
    "gru, reset before, dropout": ((5, 3), lambda: masked(L.GRU(4, dropout=0.3, reset_after=False, seed=1))),
    "simple rnn, both dropouts": ((5, 3), lambda: of(L.SimpleRNN(4, dropout=0.3, recurrent_dropout=0.4, seed=1))),
    "stacked cells, dropout": (
        (5, 3),
        lambda: of(L.RNN([L.LSTMCell(4, dropout=0.3), L.GRUCell(3, recurrent_dropout=0.4)], **rnn)),
    ),
    "conv lstm, both dropouts": (
        (3, 4, 5, 2),
        lambda: of(L.ConvLSTM2D(2, 3, dropout=0.3, recurrent_dropout=0.4, seed=1)),
    ),
    "bidirectional gru, dropout": ((5, 3), lambda: of(L.Bidirectional(L.GRU(4, dropout=0.3)))),
    "heads, dropout": ((5, 6), lambda: heads(L.MultiHeadAttention(2, 3, dropout=0.4, seed=1))),
    "grouped heads, dropout": ((5, 6), lambda: heads(L.GroupQueryAttention(3, 4, 2, dropout=0.4, seed=1))),
    "attention, dropout": ((5, 3), lambda: attention(L.Attention(use_scale=True, dropout=0.4, seed=1))),
    "time distributed dropout": (
        (4, 3),
        lambda: of(L.TimeDistributed(keras.Sequential([L.Dropout(0.5, seed=1), L.Dense(4)]))),
    ),
}
BATCH = 4
