"""Every class in keras.layers is measured, refused with a reason, or has nothing to measure: a new one fails here."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import layers as L

from tf_largebatch.norms import KERAS, per_example_gradient_norms

# name -> (input shape without the batch, a model of the layer)
MEASURED = {
    "AdditiveAttention": ((4, 3), lambda x: L.AdditiveAttention()([x, x])),
    "Attention": ((4, 3), lambda x: L.Attention(use_scale=True)([x, x])),
    "BatchNormalization": ((3,), lambda x: L.BatchNormalization()(x)),
    "Bidirectional": ((4, 3), lambda x: L.Bidirectional(L.LSTM(2))(x)),
    "Conv1D": ((4, 3), lambda x: L.Conv1D(2, 2)(x)),
    "Conv1DTranspose": ((4, 3), lambda x: L.Conv1DTranspose(2, 2)(x)),
    "Conv2D": ((4, 4, 3), lambda x: L.Conv2D(2, 2)(x)),
    "Conv2DTranspose": ((4, 4, 3), lambda x: L.Conv2DTranspose(2, 2)(x)),
    "Conv3D": ((4, 4, 4, 1), lambda x: L.Conv3D(2, 2)(x)),
    "Conv3DTranspose": ((2, 2, 2, 1), lambda x: L.Conv3DTranspose(2, 2)(x)),
    "ConvLSTM1D": ((3, 4, 2), lambda x: L.ConvLSTM1D(2, 2)(x)),
    "ConvLSTM2D": ((3, 4, 4, 2), lambda x: L.ConvLSTM2D(2, 2)(x)),
    "ConvLSTM3D": ((2, 3, 3, 3, 1), lambda x: L.ConvLSTM3D(1, 2)(x)),
    "Dense": ((3,), lambda x: L.Dense(2)(x)),
    "DepthwiseConv1D": ((4, 3), lambda x: L.DepthwiseConv1D(2)(x)),
    "DepthwiseConv2D": ((4, 4, 3), lambda x: L.DepthwiseConv2D(2)(x)),
    "EinsumDense": ((4, 3), lambda x: L.EinsumDense("abc,cd->abd", (4, 2), bias_axes="d")(x)),
    "Embedding": ((3,), lambda x: L.Embedding(5, 2)(x)),
    "GRU": ((4, 3), lambda x: L.GRU(2)(x)),
    "GRUCell": ((3,), lambda x: L.GRUCell(3)(x, [x])[0]),
    "GroupNormalization": ((4, 4), lambda x: L.GroupNormalization(2)(x)),
    "GroupedQueryAttention": ((4, 3), lambda x: L.GroupQueryAttention(2, 2, 1)(x, x)),
    "LSTM": ((4, 3), lambda x: L.LSTM(2)(x)),
    "LSTMCell": ((3,), lambda x: L.LSTMCell(3)(x, [x, x])[0]),
    "LayerNormalization": ((4, 3), lambda x: L.LayerNormalization()(x)),
    "MultiHeadAttention": ((4, 3), lambda x: L.MultiHeadAttention(2, 2)(x, x)),
    "PReLU": ((4, 3), lambda x: L.PReLU()(x)),
    "RMSNormalization": ((4, 3), lambda x: L.RMSNormalization()(x)),
    "RNN": ((4, 3), lambda x: L.RNN(L.GRUCell(2))(x)),
    "ReversibleEmbedding": ((3,), lambda x: (lambda e: e(e(x), reverse=True))(L.ReversibleEmbedding(5, 2))),
    "STFTSpectrogram": ((20, 1), lambda x: L.STFTSpectrogram("log", 8, 4)(x)),
    "SeparableConv1D": ((4, 3), lambda x: L.SeparableConv1D(2, 2)(x)),
    "SeparableConv2D": ((4, 4, 3), lambda x: L.SeparableConv2D(2, 2)(x)),
    "SimpleRNN": ((4, 3), lambda x: L.SimpleRNN(2)(x)),
    "SimpleRNNCell": ((3,), lambda x: L.SimpleRNNCell(3)(x, [x])[0]),
    "SpectralNormalization": ((3,), lambda x: L.SpectralNormalization(L.Dense(2))(x)),
    "StackedRNNCells": ((4, 3), lambda x: L.RNN(L.StackedRNNCells([L.LSTMCell(2), L.GRUCell(2)]))(x)),
    "TimeDistributed": ((4, 3), lambda x: L.TimeDistributed(L.Dense(2))(x)),
}

REFUSED = {
    "FlaxLayer": "computes in JAX, which TensorFlow cannot differentiate example by example",
    "JaxLayer": "computes in JAX, which TensorFlow cannot differentiate example by example",
    "TFSMLayer": "calls a SavedModel: a graph that reads its own variables, not through the layer",
    "TorchModuleWrapper": "computes in PyTorch",
}

NOTHING_TO_TRAIN = {
    *("Layer", "Wrapper", "InputLayer", "Identity", "Lambda", "Masking", "Pipeline"),
    *("Activation", "ELU", "LeakyReLU", "ReLU", "Softmax", "UnitNormalization"),
    *("ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"),
    *(f"SpatialDropout{n}D" for n in (1, 2, 3)),
    *("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"),
    *("Flatten", "Permute", "RepeatVector", "Reshape"),
    *(f"{name}{n}D" for n in (1, 2, 3) for name in ("Cropping", "UpSampling", "ZeroPadding")),
    *(f"{kind}Pooling{n}D" for n in (1, 2, 3) for kind in ("Average", "Max", "AdaptiveAverage", "AdaptiveMax")),
    *(f"Global{kind}Pooling{n}D" for n in (1, 2, 3) for kind in ("Average", "Max")),
    # Preprocessing; what state there is (Normalization, vocabularies) is adapted, not trained.
    *("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing", "IntegerLookup", "MelSpectrogram"),
    *("Normalization", "Rescaling", "StringLookup", "TextVectorization"),
    *("AugMix", "AutoContrast", "CenterCrop", "ContrastLimitedAdaptiveHistogramEqualization", "CutMix"),
    *("Equalization", "MaxNumBoundingBoxes", "MixUp", "RandAugment", "Resizing", "Solarization"),
    *("RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomCrop"),
    *("RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale"),
    *("RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation"),
    *("RandomSaturation", "RandomSharpness", "RandomShear", "RandomTranslation", "RandomZoom"),
}


def keras_layers():
    classes = (value for _, value in inspect.getmembers(L, inspect.isclass))
    return {cls.__name__: cls for cls in classes if issubclass(cls, L.Layer)}


def test_a_person_has_decided_about_every_class():
    tables = [set(MEASURED), set(REFUSED), NOTHING_TO_TRAIN]
    decided = set().union(*tables)
    assert sum(map(len, tables)) == len(decided), "a class is in two tables"
    # Not the other way: older versions of Keras lack some.
    assert not set(keras_layers()) - decided


@pytest.mark.parametrize("name", MEASURED)
def test_measured(name):
    shape, build = MEASURED[name]
    ids = "Embedding" in name
    inputs = keras.Input(shape, dtype="int32" if ids else None)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(build(inputs))))
    assert any(isinstance(layer, keras_layers()[name]) for layer in model._flatten_layers())
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (3, *shape)) if ids else rng.normal(size=(3, *shape)).astype("float32")
    found = per_example_gradient_norms(model, x, np.ones((3, 2), "float32"), "mse")
    assert set(found) == {v.path for v in model.trainable_variables}
    assert all(np.all(np.isfinite(norms)) for norms in found.values())


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    assert not set(keras_layers()[name].__mro__) & set(KERAS.layer_classes())


@pytest.mark.parametrize("name", sorted((NOTHING_TO_TRAIN & set(keras_layers())) - {"Layer"}))
def test_nothing_to_train(name):
    own_classes = keras_layers()[name].__mro__
    source = "".join(inspect.getsource(cls) for cls in own_classes[: own_classes.index(L.Layer)])
    assert "add_weight" not in source or name == "Normalization"


STATES_WITHOUT_A_RULE = {
    "LoRA": (lambda layer: layer.enable_lora(1), "LoRA is enabled"),
    "int8": (lambda layer: layer.quantize("int8"), "is quantized"),
    "int4": (lambda layer: layer.quantize("int4"), "is quantized"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "layer", [L.Dense, lambda n: L.EinsumDense("ab,bc->ac", n, bias_axes="c"), L.ReversibleEmbedding]
)
@pytest.mark.parametrize("state", STATES_WITHOUT_A_RULE)
def test_refused_in_a_certain_state(state, layer):
    change, reason = STATES_WITHOUT_A_RULE[state]
    layer = L.ReversibleEmbedding(4, 2, tie_weights=False) if layer is L.ReversibleEmbedding else layer(2)
    layer.build((None, 4))
    change(layer)
    assert reason in KERAS.why_not(layer)
    if reason == "is quantized":
        assert reason in KERAS.allowing_generic().why_not(layer)
    model = keras.Sequential([keras.Input((4,)), layer, L.Flatten(), L.Dense(2)])
    if not any(v.trainable for v in layer.variables):
        return  # nothing is left to measure
    with pytest.raises(ValueError, match=reason):
        per_example_gradient_norms(model, np.ones((4, 4), "float32"), np.ones((4, 2), "float32"), "mse")


def test_a_conv_lstm_with_channels_first_is_refused():
    layer = L.ConvLSTM2D(2, 3, data_format="channels_first")
    layer.build((None, 3, 2, 6, 6))
    assert "channels_last" in KERAS.why_not(layer)


def test_rules_are_not_registered_for_classes_that_are_unknown_here():
    # Stand-ins for classes of KerasHub, which other tests meet by name, are entered when they are met.
    names = {cls.__name__ for cls in KERAS.layer_classes() if not cls.__module__.startswith("keras_hub")}
    assert names - {"LayerScale"} <= set(MEASURED)  # LayerScale belongs to keras.applications
