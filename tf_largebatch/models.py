"""Named networks: the small-image networks of the large-batch papers, and all of keras.applications.

To add a network, write a function of the image shape and the number of classes, and add a row to `NETWORKS`.

Every network is made of plain `keras.layers`, so that a saved `.keras` file loads without this package. It returns
logits of shape `(batch, num_classes)`, without a softmax: train with `from_logits=True`, and apply `keras.ops.softmax`
for probabilities. Inputs are standardized images (see `tf_largebatch.data`); those of a network that brings weights or
comes from a file are pixels, which it prepares in its own way.

The moving averages of all batch norms have momentum 0.9: a run with large batches has few updates, and with Keras's
0.99 (0.999 in MobileNets) they would still contain the initial values when it ends.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable

import keras
from keras import layers

BATCH_NORM_MOMENTUM = 0.9
# Smaller images than this would vanish in the first strides of MobileNetV2.
MOBILENET_FULL_SIZE = 96

_VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
# Expansion, filters, blocks, stride of the first block: the paper's table, with stride 1 in its second row and in the
# stem.
_MOBILENETV2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

ImageShape = tuple[int, int, int]


def names() -> tuple[str, ...]:
    """Returns the names of the networks of this module; `build` knows those of keras.applications too."""
    return tuple(NETWORKS)


def build(name: str, image_shape: ImageShape, num_classes: int) -> keras.Model:
    """Builds a network by name, with random weights.

    Args:
        name: One of `names()`, or a network of keras.applications such as `resnet50` or `EfficientNetB0`;
            case, `-` and `_` do not matter.
        image_shape: `(height, width, channels)`.
        num_classes: Number of logits.

    Returns:
        A functional model from `(batch, *image_shape)` to logits `(batch, num_classes)`.

    Raises:
        ValueError: For an unknown name, or images too small for the network.
    """
    key = canonical_name(name)
    if key in NETWORKS and not (key == "mobilenetv2" and min(image_shape[:2]) >= MOBILENET_FULL_SIZE):
        return NETWORKS[key](image_shape, num_classes)
    return _application(_applications()[key], image_shape, num_classes)


def takes_pixels(name: str, weights: str | None = None) -> bool:
    """Whether a network takes pixels as they are stored in place of standardized images.

    Args:
        name: Name of a network, or the path of a .keras file.
        weights: Its weights; see `pretrained`.
    """
    return is_file(name) or weights is not None


def is_application(name: str) -> bool:
    """Whether a network's canonical name is one of keras.applications."""
    return name in _applications()


def is_file(name: str) -> bool:
    """Whether a network's name is that of a .keras file."""
    return name.lower().endswith(".keras")


def canonical_name(name: str) -> str:
    """Returns the lower-case name of a network, without `-` and `_`.

    Raises:
        ValueError: For an unknown name; the message lists the known ones.
    """
    key = re.sub("[-_ ]", "", name).lower()
    applications = _applications()
    if key in NETWORKS or key in applications:
        return key
    near = difflib.get_close_matches(key, [*NETWORKS, *applications], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
        f"model must be one of {', '.join(NETWORKS)} or of keras.applications ({', '.join(applications)}); "
        f"received model={name!r}{hint}."
    )


def resnet(depth: int, image_shape: ImageShape, num_classes: int) -> keras.Model:
    """Builds a residual network for small images, of depth 6n + 2: three stages of n blocks with 16, 32, 64 filters.

    Shortcuts that change the shape are 1x1 convolutions with batch norm, as in the code of the large-batch papers:
    option B of the ResNet paper, which uses option A, without parameters, for small images.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2.

    Args:
        depth: 8, 14, 20, ..., 110, ...
        image_shape: `(height, width, channels)`.
        num_classes: Number of logits.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2: 8, 14, 20 and so on; received depth={depth}.")
    inputs = keras.Input(image_shape)
    x = _conv_norm_relu(inputs, 16, name="stem")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            prefix = f"stage{stage}_block{block}"
            y = _conv_norm_relu(x, filters, strides=stride, name=f"{prefix}_a")
            y = _conv_norm(y, filters, name=f"{prefix}_b")
            if stride != 1:
                x = _conv_norm(x, filters, kernel=1, strides=stride, name=f"{prefix}_shortcut")
            x = layers.ReLU(name=f"{prefix}_relu")(layers.Add(name=f"{prefix}_add")([x, y]))
    return _classifier(inputs, x, num_classes, f"resnet{depth}")


def conv4(image_shape: ImageShape, num_classes: int) -> keras.Model:
    """Builds a small network for studies on a CPU: four 3x3 convolutions of 8, 16, 16 and 32 filters with batch norm.

    The second and the fourth have stride 2.

    Args:
        image_shape: `(height, width, channels)`.
        num_classes: Number of logits.
    """
    x = inputs = keras.Input(image_shape)
    for number, (filters, stride) in enumerate(((8, 1), (16, 2), (16, 1), (32, 2)), start=1):
        x = _conv_norm_relu(x, filters, strides=stride, name=f"layer{number}")
    return _classifier(inputs, x, num_classes, "conv4")


def vgg11(image_shape: ImageShape, num_classes: int) -> keras.Model:
    """Builds VGG-11 (configuration A) with batch norm and one dense layer, for small images.

    Pooling stops when one pixel is left, so that images of any size fit.

    Source: K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", 2015, table 1.

    Args:
        image_shape: `(height, width, channels)`.
        num_classes: Number of logits.
    """
    x = inputs = keras.Input(image_shape)
    convolution = 0
    for width in _VGG11:
        if isinstance(width, int):
            convolution += 1
            x = _conv_norm_relu(x, width, name=f"layer{convolution}")
        elif min(x.shape[1:3]) > 1:
            x = layers.MaxPooling2D(2, name=f"pool_after{convolution}")(x)
    return _classifier(inputs, x, num_classes, "vgg11")


def densenet40(image_shape: ImageShape, num_classes: int, growth: int = 12) -> keras.Model:
    """Builds a DenseNet of depth 40 and growth rate 12: three blocks of 12 layers, without bottleneck or compression.

    It has no dropout, as in the paper for training with augmentation.

    Source: G. Huang et al., "Densely Connected Convolutional Networks", 2017, section 4.2.

    Args:
        image_shape: `(height, width, channels)`.
        num_classes: Number of logits.
        growth: Filters that each layer adds.
    """
    inputs = keras.Input(image_shape)
    x = _conv(inputs, 16, name="stem")
    for block in (1, 2, 3):
        for layer in range(1, 13):
            name = f"block{block}_layer{layer}"
            y = _conv(_norm_relu(x, name), growth, name=f"{name}_conv")
            x = layers.Concatenate(name=f"{name}_concat")([x, y])
        if block < 3:
            name = f"transition{block}"
            x = _conv(_norm_relu(x, name), x.shape[-1], kernel=1, name=f"{name}_conv")
            x = layers.AveragePooling2D(2, name=f"{name}_pool")(x) if min(x.shape[1:3]) > 1 else x
    return _classifier(inputs, _norm_relu(x, "head"), num_classes, "densenet40")


def mobilenetv2_small(image_shape: ImageShape, num_classes: int) -> keras.Model:
    """Builds MobileNetV2 for small images: the stem and the second row of the table keep the resolution.

    Source: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2.

    Args:
        image_shape: `(height, width, channels)`.
        num_classes: Number of logits.
    """
    inputs = keras.Input(image_shape)
    x = _conv_norm_relu(inputs, 32, name="stem", cap=6)
    for row, (expansion, filters, blocks, first_stride) in enumerate(_MOBILENETV2, start=1):
        for block in range(1, blocks + 1):
            name = f"row{row}_block{block}"
            stride = first_stride if block == 1 else 1
            y = x
            if expansion > 1:
                y = _conv_norm_relu(y, expansion * x.shape[-1], kernel=1, name=f"{name}_expand", cap=6)
            y = layers.DepthwiseConv2D(
                3, stride, "same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_depthwise"
            )(y)
            y = _norm_relu(y, f"{name}_depthwise", cap=6)
            y = _conv_norm(y, filters, kernel=1, name=f"{name}_project")
            same = stride == 1 and x.shape[-1] == filters
            x = layers.Add(name=f"{name}_add")([x, y]) if same else y
    x = _conv_norm_relu(x, 1280, kernel=1, name="head", cap=6)
    return _classifier(inputs, x, num_classes, "mobilenetv2")


def _conv(x: keras.KerasTensor, filters: int, *, name: str, kernel: int = 3, strides: int = 1) -> keras.KerasTensor:
    return layers.Conv2D(filters, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name)(x)


def _norm_relu(x: keras.KerasTensor, name: str, cap: float | None = None) -> keras.KerasTensor:
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_bn")(x)
    return layers.ReLU(cap, name=f"{name}_relu")(x)


def _conv_norm(
    x: keras.KerasTensor, filters: int, *, name: str, kernel: int = 3, strides: int = 1
) -> keras.KerasTensor:
    x = _conv(x, filters, kernel=kernel, strides=strides, name=f"{name}_conv")
    return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_bn")(x)


def _conv_norm_relu(
    x: keras.KerasTensor,
    filters: int,
    *,
    name: str,
    kernel: int = 3,
    strides: int = 1,
    cap: float | None = None,
) -> keras.KerasTensor:
    x = _conv(x, filters, kernel=kernel, strides=strides, name=f"{name}_conv")
    return _norm_relu(x, name, cap)


def _classifier(inputs: keras.KerasTensor, x: keras.KerasTensor, num_classes: int, name: str) -> keras.Model:
    x = layers.GlobalAveragePooling2D(name="average")(x)
    # float32 under every mixed precision policy, since the loss is computed from these numbers.
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=name)


def _applications() -> dict[str, Callable[..., keras.Model]]:
    found: dict[str, Callable[..., keras.Model]] = {}
    for name, function in vars(keras.applications).items():
        if inspect.isfunction(function) and "classifier_activation" in inspect.signature(function).parameters:
            found[name.lower()] = function
    return found


def pretrained(
    name: str, weights: str, image_shape: ImageShape, num_classes: int, pixel_scale: float = 255.0
) -> keras.Model:
    """Builds a network of keras.applications with weights, and a new dense layer in place of its classifier.

    It takes pixels and prepares them as the network's own `preprocess_input` does. Grey images become RGB.

    Args:
        name: Its name; see `build`.
        weights: `"imagenet"`, which Keras keeps in ~/.keras/models and fetches from the network otherwise, or the
            path of a .weights.h5 file of the network without its classifier (`include_top=False`).
        image_shape: `(height, width, channels)`, channels 1 or 3.
        num_classes: Number of logits.
        pixel_scale: The largest pixel value.

    Raises:
        ValueError: If the network has no such weights, they cannot be read, or the images are too small for it.
    """
    function = _applications()[canonical_name(name)]
    if image_shape[2] not in (1, 3):
        raise ValueError(f"weights={weights!r} must go with grey or RGB images; received images of {image_shape}.")
    pixels = keras.Input(image_shape, name="pixels")
    x = pixels
    if pixel_scale != 255:
        x = layers.Rescaling(255 / pixel_scale, name="to_255")(x)
    if image_shape[2] == 1:
        x = layers.Concatenate(name="to_rgb")([x, x, x])
    if "include_preprocessing" not in inspect.signature(function).parameters:
        x = sys.modules[function.__module__].preprocess_input(x)
    try:
        network = function(include_top=False, weights=weights, input_shape=(*image_shape[:2], 3))
    except Exception as error:  # of the network, of HDF5 and of Keras, by what is wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"model {function.__name__} cannot be built with weights={weights!r} for images of shape {image_shape}: "
            f"{reason}. Check the file of weights, or choose another model or image_size."
        ) from error
    _quicken_averages(network)
    return _classifier(pixels, network(x), num_classes, f"{network.name}_pretrained")


def from_file(path: str, image_shape: ImageShape, num_classes: int) -> keras.Model:
    """Loads a classifier to go on training.

    Args:
        path: A .keras file.
        image_shape: `(height, width, channels)` of the images.
        num_classes: Number of classes.

    Raises:
        ValueError: If the file cannot be loaded, or holds no classifier of such images.
    """
    if not os.path.isfile(path):
        raise ValueError(f"model must be a file that exists; received model={path!r}.")
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever a damaged archive or an unknown class makes Keras raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} is damaged, or no model that Keras can load: {reason}.") from error
    for given, wanted, what, remedy in (
        (model.input_shape, image_shape, "inputs", "pass image_size, or another model"),
        (model.output_shape, (num_classes,), "outputs", "choose a model with an output for each class"),
    ):
        fits = isinstance(given, tuple) and len(given) == len(wanted) + 1
        if not fits or any(one not in (None, size) for one, size in zip(given[1:], wanted, strict=True)):
            raise ValueError(
                f"model must have {what} of shape {tuple(wanted)} for this data set; received model={path!r} with "
                f"{given}: {remedy}."
            )
    return model


def returns_logits(model: keras.Model) -> bool:
    """Whether a classifier returns logits: unless its last layer is a softmax."""
    last = model.layers[-1]
    if isinstance(last, keras.Model):
        return returns_logits(last)
    softmax = getattr(last, "activation", None) is keras.activations.softmax
    return not (softmax or isinstance(last, layers.Softmax))


def _quicken_averages(model: keras.Model) -> None:
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM


def _application(function: Callable[..., keras.Model], image_shape: ImageShape, num_classes: int) -> keras.Model:
    options = {"weights": None, "classes": num_classes, "classifier_activation": None}
    name = function.__name__
    if "include_preprocessing" in inspect.signature(function).parameters:
        options["include_preprocessing"] = False
    try:
        if re.fullmatch(r"EfficientNetB\d", name):
            # These divide by 255 with no way to leave that out; the input is standardized already.
            inputs = keras.Input(image_shape)
            model = function(input_tensor=layers.Rescaling(255.0, name="undo_rescaling")(inputs), **options)
            model = keras.Model(inputs, model.output, name=model.name)
        else:
            model = function(input_shape=image_shape, **options)
    except ValueError as error:
        raise ValueError(
            f"model {name} cannot be built for images of shape {image_shape}: {str(error).splitlines()[0]} "
            f"Choose another model or a larger image_size."
        ) from error
    _quicken_averages(model)
    return model


NETWORKS: dict[str, Callable[[ImageShape, int], keras.Model]] = {
    **{f"resnet{depth}": functools.partial(resnet, depth) for depth in (8, 20, 32, 44, 56, 110)},
    "conv4": conv4,
    "vgg11": vgg11,
    "densenet40": densenet40,
    "mobilenetv2": mobilenetv2_small,
}
