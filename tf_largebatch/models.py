"""Named networks: the small-image networks of the large-batch papers, and all of keras.applications.

To add a network, write a function of the image shape and the number of classes, and add a row to `NETWORKS`.

Every network is made of plain `keras.layers`, so that a saved `.keras` file loads without this package. It returns
logits of shape `(batch, num_classes)`, without a softmax: train with `from_logits=True`, and apply `keras.ops.softmax`
for probabilities. Inputs are standardized images (see `tf_largebatch.data`). `pretrained` has the networks that bring
their weights.

The moving averages of all batch norms have momentum 0.9: a run with large batches has few updates, and with Keras's
0.99 (0.999 in MobileNets) they would still contain the initial values when it ends.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
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
    return _application(applications()[key], image_shape, num_classes)


def is_application(name: str) -> bool:
    """Returns whether a network's canonical name is one of keras.applications."""
    return name in applications()


def canonical_name(name: str) -> str:
    """Returns the lower-case name of a network, without `-` and `_`.

    Raises:
        ValueError: For an unknown name; the message lists the known ones.
    """
    key = re.sub("[-_ ]", "", name).lower()
    known = applications()
    if key in NETWORKS or key in known:
        return key
    near = difflib.get_close_matches(key, [*NETWORKS, *known], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
        f"model must be one of {', '.join(NETWORKS)} or of keras.applications ({', '.join(known)}); "
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
    return classifier(inputs, x, num_classes, f"resnet{depth}")


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
    return classifier(inputs, x, num_classes, "conv4")


def lenet5(image_shape: ImageShape, num_classes: int) -> keras.Model:
    """Builds LeNet-5 with ReLU, maximum pooling and padded convolutions: biases, and no batch norm.

    Padding lets it take images from 4 pixels on, which the published network (LeCun et al., 1998) does not.

    Args:
        image_shape: `(height, width, channels)`.
        num_classes: Number of logits.
    """
    x = inputs = keras.Input(image_shape)
    for number, filters in enumerate((6, 16), start=1):
        convolution = layers.Conv2D(
            filters, 5, padding="same", activation="relu", kernel_initializer="he_normal", name=f"conv{number}"
        )
        x = layers.MaxPooling2D(name=f"pool{number}")(convolution(x))
    x = layers.Flatten(name="flatten")(x)
    for number, units in enumerate((120, 84), start=1):
        x = layers.Dense(units, "relu", kernel_initializer="he_normal", name=f"dense{number}")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="lenet5")


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
    return classifier(inputs, x, num_classes, "vgg11")


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
    return classifier(inputs, _norm_relu(x, "head"), num_classes, "densenet40")


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
    return classifier(inputs, x, num_classes, "mobilenetv2")


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


def classifier(inputs: keras.KerasTensor, x: keras.KerasTensor, num_classes: int, name: str) -> keras.Model:
    """Returns the model that averages features `x` over the positions and maps them to logits.

    Args:
        inputs: Images.
        x: Their features, `(batch, height, width, channels)`.
        num_classes: Number of logits.
        name: Name of the model.
    """
    x = layers.GlobalAveragePooling2D(name="average")(x)
    # float32 under every mixed precision policy, since the loss is computed from these numbers.
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=name)


def applications() -> dict[str, Callable[..., keras.Model]]:
    """Returns the networks of keras.applications by their canonical names."""
    found: dict[str, Callable[..., keras.Model]] = {}
    for name, function in vars(keras.applications).items():
        if inspect.isfunction(function) and "classifier_activation" in inspect.signature(function).parameters:
            found[name.lower()] = function
    return found


def quicken_averages(model: keras.Model) -> None:
    """Gives all batch norms the momentum that suits runs of few updates."""
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
    quicken_averages(model)
    return model


NETWORKS: dict[str, Callable[[ImageShape, int], keras.Model]] = {
    **{f"resnet{depth}": functools.partial(resnet, depth) for depth in (8, 20, 32, 44, 56, 110)},
    "conv4": conv4,
    "lenet5": lenet5,
    "vgg11": vgg11,
    "densenet40": densenet40,
    "mobilenetv2": mobilenetv2_small,
}
