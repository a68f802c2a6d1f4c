"""Every class in keras.layers is measured, refused with a reason, or has nothing to measure: a new one fails here."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from comparing import ON_JAX
from every_layer import MEASURED, norms_of_layer, run_on
from keras import layers as L
from selection import long_unless

from tf_largebatch.norms import KERAS, per_example_gradient_norms

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
    *("Equalization", "MaxNumBoundingBoxes", "MixUp", "Mosaic", "RandAugment", "Resizing", "Solarization"),
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


@pytest.fixture(scope="module")
def norms_on_tensorflow(request, tmp_path_factory):
    """The norms that TensorFlow gives for every layer that is tested here; None where this is TensorFlow."""
    if not ON_JAX:
        return None
    file = tmp_path_factory.mktemp("norms") / "tensorflow.npz"
    asked = [
        item.callspec.params["name"] for item in request.session.items if "norms_on_tensorflow" in item.fixturenames
    ]
    run_on("tensorflow", file, asked)
    return np.load(file)


# Compiling takes long on JAX. The layers of tests/jax/norms_run.py are compared with TensorFlow's there.
QUICK_ON_JAX = ("ConvLSTM2D", "SpectralNormalization")


@pytest.mark.parametrize("name", long_unless(MEASURED, QUICK_ON_JAX, condition=ON_JAX))
def test_measured_and_the_same_on_both_backends(name, norms_on_tensorflow):
    model, found = norms_of_layer(name)
    assert any(isinstance(layer, keras_layers()[name]) for layer in model._flatten_layers())
    assert len(found) == len(model.trainable_variables)
    assert all(np.all(np.isfinite(norms)) for norms in found)
    if norms_on_tensorflow is not None:
        on_tensorflow = norms_on_tensorflow[name]
        # Float32 sums in another order. A key's bias changes no attention: both backends give rounding noise for 0.
        atol = 1e-5 * np.max(on_tensorflow)
        for v, norms, expected in zip(model.trainable_variables, found, on_tensorflow, strict=True):
            np.testing.assert_allclose(norms, expected, rtol=1e-4, atol=atol, err_msg=v.path)


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
    # LayerScale belongs to keras.applications; TernaryDense is a stand-in of other tests before Keras 3.16.
    assert names - {"LayerScale", "TernaryDense"} <= set(MEASURED)
