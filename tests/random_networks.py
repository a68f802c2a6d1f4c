"""Networks made at random from the layers that have a rule, with a loss, weights, a batch and a way to run.

A network is a few whole numbers, so that hypothesis can make a failing one small and its `repr` repeats it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from hypothesis import HealthCheck, Phase, settings, strategies
from keras import layers as L
from keras import ops

from tf_largebatch.keras_internals import layers_within

Options = Callable[..., Any]
Pieces = Mapping[str, tuple[tuple[Any, ...], Callable[[Options, tuple[int, ...]], Any]]]

# How hypothesis draws the networks with each rule: the same ones every time; it makes a failing one small.
DRAWS = settings(
    max_examples=13,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

ACTIVATIONS = (None, "tanh", "relu", "softplus")


class Choices:
    """Chooses among options by one number after the other, and by 0 when they have come to their end."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = itertools.chain(numbers, itertools.repeat(0))

    def __call__(self, *options: Any) -> Any:
        return options[next(self._numbers) % len(options)]


@dataclasses.dataclass(frozen=True)
class Piece:
    """One or several layers: the name in `PIECES`, how they are wired, and the numbers that choose their arguments."""

    name: str
    wiring: str = "once"
    numbers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        pieces: what it is made of, one after the other; layers between them give each the axes that it needs.
        sizes: numbers that choose the input's shape.
        loss: a name in `LOSSES`.
        reduction: how the loss of the examples is reduced.
        weights: a name in `WEIGHTS`.
        batch: the number of examples.
        policy: the dtype policy.
        way: "eager", "graph" or "jit".
        seed: of the weights and the data.
    """

    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...] = ()
    loss: str = "sparse"
    reduction: str = "sum_over_batch_size"
    weights: str = "none"
    batch: int = 2
    policy: str = "float32"
    way: str = "eager"
    seed: int = 0


def _convolution(
    make: Callable[..., L.Layer], grouped: bool = False, depthwise: bool = False, transposed: bool = False
) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        padding = of("same", "valid")
        kernel = of(2, 1, 3)
        kernel = kernel if padding == "same" else min(kernel, *shape[:-1])
        strides, dilation = of((1, 1), (2, 1), (1, 2), (3, 1))
        if (kernel - 1) * dilation + 1 > min(shape[:-1]):
            dilation = 1
        arguments = {
            "padding": padding,
            "strides": strides,
            "use_bias": of(True, False),
            "activation": of(*ACTIVATIONS),
        }
        if not transposed:
            arguments["dilation_rate"] = dilation
        if depthwise:
            return make(kernel, depth_multiplier=of(1, 2), **arguments)
        filters = of(2, 3, 1)
        if grouped and shape[-1] > 1 and of(False, False, True):
            return make(filters * shape[-1], kernel, groups=shape[-1], **arguments)
        regularizer = {} if depthwise else {"kernel_regularizer": of(None, None, "l2")}
        if make.__name__.startswith("Separable"):
            regularizer = {"pointwise_regularizer": regularizer["kernel_regularizer"]}
        return make(filters, kernel, **arguments, **regularizer)

    return build


def _recurrent(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        arguments = {"return_sequences": of(True, False), "use_bias": of(True, False), "go_backwards": of(False, True)}
        if make is L.GRU:
            arguments["reset_after"] = of(True, False)
        layer = make(of(2, 3, 1), unroll=of(False, False, True), **arguments)
        masked = of(False, False, True)
        if not masked:
            return layer
        return lambda x: layer(x, mask=ops.greater(x[..., 0], 0.0))

    return build


def _convolutional_recurrent(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        arguments = {"return_sequences": of(True, False), "use_bias": of(True, False), "strides": of(1, 2)}
        return make(of(2, 1), of(2, 1, 3), padding="same", **arguments)

    return build


def _heads(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        layer = make(of(2, 1), of(2, 3), value_dim=of(None, 1), use_bias=of(True, False))
        causal = of(False, True)
        return lambda x: layer(x, x, use_causal_mask=causal)

    return build


def _grouped_heads(of: Options, shape: tuple[int, ...]) -> Any:
    layer = L.GroupQueryAttention(of(2, 3), *of((2, 1), (4, 2), (2, 2)), use_bias=of(True, False))
    return lambda x: layer(x, x)


def _attention(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        more = {"score_mode": of("dot", "concat")} if make is L.Attention else {}
        layer = make(use_scale=True, **more)
        return lambda x: layer([L.Activation("tanh")(x), x])

    return build


def _cell(make: Callable[..., L.Layer], states: int) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        units = shape[-1]
        cell = make(units, use_bias=of(True, False))
        return lambda x: cell(x, [L.Activation("tanh")(x)] * states)[0]

    return build


def _normalization(make: Callable[..., L.Layer], **options: Sequence[Any]) -> Callable[[Options, tuple[int, ...]], Any]:
    return lambda of, shape: make(**{name: of(*values) for name, values in options.items()})


def _dense(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    return lambda of, shape: make(
        of(3, 2, 1, 20), of(*ACTIVATIONS), of(True, False), kernel_regularizer=of(None, None, "l2")
    )


def _embedding(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    return lambda of, shape: make(of(5, 9), of(2, 3, 1), mask_zero=of(False, True))


def _group_normalization(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    return lambda of, shape: make(of(1, shape[-1]), center=of(True, False), scale=of(True, False))


def _einsum(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        steps = shape[0]
        return of(
            lambda: make("abc,cd->abd", (steps, 3), bias_axes="d"),
            lambda: make("abc,bcd->abd", (steps, 2), bias_axes="bd"),
            lambda: make("...x,xy->...y", 2),
            lambda: make("abc,cde->abde", (steps, 2, 2), bias_axes="de"),
        )()

    return build


def _prelu(make: Callable[..., L.Layer]) -> Callable[[Options, tuple[int, ...]], Any]:
    def build(of: Options, shape: tuple[int, ...]) -> Any:
        shared = of(None, [1])
        return make(shared_axes=shared if len(shape) > 1 else None, alpha_initializer="he_normal")

    return build


def _reversible(of: Options, shape: tuple[int, ...]) -> Any:
    layer = L.ReversibleEmbedding(of(5, 7), of(2, 3), tie_weights=of(True, False))
    goes_back = of(True, False)
    return lambda ids: layer(layer(ids), reverse=True) if goes_back else layer(ids)


def _spectral(of: Options, shape: tuple[int, ...]) -> Any:
    inner = L.Dense(of(2, 3)) if len(shape) < 3 or of(True, False) else L.Conv2D(of(2, 3), 2, padding="same")
    return L.SpectralNormalization(inner, power_iterations=of(1, 2))


def _stft(of: Options, shape: tuple[int, ...]) -> Any:
    return L.STFTSpectrogram(of("log", "magnitude", "psd"), of(8, 6), of(4, 3), padding=of("valid", "same"))


def _time_distributed(of: Options, shape: tuple[int, ...]) -> Any:
    inner = {
        2: lambda: L.Dense(of(2, 3), activation=of(*ACTIVATIONS)),
        3: lambda: of(L.Conv1D(2, 2, padding="same"), L.LSTM(2), L.Dense(2)),
        4: lambda: of(L.Conv2D(2, 2, padding="same"), L.DepthwiseConv2D(2, padding="same"), L.Dense(2)),
    }[len(shape)]()
    return L.TimeDistributed(inner)


def _stacked_cells(of: Options, shape: tuple[int, ...]) -> Any:
    cells = [of(L.LSTMCell(2), L.GRUCell(2)), of(L.GRUCell(3, reset_after=False), L.SimpleRNNCell(2), L.LSTMCell(2))]
    return L.RNN(L.StackedRNNCells(cells), return_sequences=of(True, False))


# name -> (how many axes beside the batch's the input may have, what makes the layer from choices and that shape).
ANY, IDS = (1, 2, 3), ("ids",)
PIECES: Pieces = {
    "AdditiveAttention": ((2,), _attention(L.AdditiveAttention)),
    "Attention": ((2,), _attention(L.Attention)),
    "BatchNormalization": (
        ANY,
        _normalization(
            L.BatchNormalization, axis=(-1, 1), center=(True, False), scale=(True, False), momentum=(0.9, 0.5)
        ),
    ),
    "Bidirectional": (
        (2,),
        lambda of, shape: L.Bidirectional(
            of(L.LSTM, L.GRU, L.SimpleRNN)(2, return_sequences=of(True, False)), merge_mode=of("concat", "sum", "mul")
        ),
    ),
    "Conv1D": ((2,), _convolution(L.Conv1D, grouped=True)),
    "Conv1DTranspose": ((2,), _convolution(L.Conv1DTranspose, transposed=True)),
    "Conv2D": ((3,), _convolution(L.Conv2D, grouped=True)),
    "Conv2DTranspose": ((3,), _convolution(L.Conv2DTranspose, transposed=True)),
    "Conv3D": ((4,), _convolution(L.Conv3D)),
    "Conv3DTranspose": ((4,), _convolution(L.Conv3DTranspose, transposed=True)),
    "ConvLSTM1D": ((3,), _convolutional_recurrent(L.ConvLSTM1D)),
    "ConvLSTM2D": ((4,), _convolutional_recurrent(L.ConvLSTM2D)),
    "ConvLSTM3D": ((5,), _convolutional_recurrent(L.ConvLSTM3D)),
    "Dense": ((1, 2, 3, 4), _dense(L.Dense)),
    "DepthwiseConv1D": ((2,), _convolution(L.DepthwiseConv1D, depthwise=True)),
    "DepthwiseConv2D": ((3,), _convolution(L.DepthwiseConv2D, depthwise=True)),
    "EinsumDense": ((2,), _einsum(L.EinsumDense)),
    "Embedding": (IDS, _embedding(L.Embedding)),
    "GRU": ((2,), _recurrent(L.GRU)),
    "GRUCell": ((1,), _cell(L.GRUCell, 1)),
    "GroupNormalization": ((2, 3), _group_normalization(L.GroupNormalization)),
    "GroupedQueryAttention": ((2,), _grouped_heads),
    "LSTM": ((2,), _recurrent(L.LSTM)),
    "LSTMCell": ((1,), _cell(L.LSTMCell, 2)),
    "LayerNormalization": (ANY, _normalization(L.LayerNormalization, center=(True, False), scale=(True, False))),
    "MultiHeadAttention": ((2,), _heads(L.MultiHeadAttention)),
    "PReLU": (ANY, _prelu(L.PReLU)),
    "RMSNormalization": (ANY, _normalization(L.RMSNormalization)),
    "RNN": (
        (2,),
        lambda of, shape: L.RNN(of(L.GRUCell, L.LSTMCell, L.SimpleRNNCell)(2), return_sequences=of(True, False)),
    ),
    "ReversibleEmbedding": (IDS, _reversible),
    "STFTSpectrogram": (("signal",), _stft),
    "SeparableConv1D": ((2,), _convolution(L.SeparableConv1D)),
    "SeparableConv2D": ((3,), _convolution(L.SeparableConv2D)),
    "SimpleRNN": ((2,), _recurrent(L.SimpleRNN)),
    "SimpleRNNCell": ((1,), _cell(L.SimpleRNNCell, 1)),
    "SpectralNormalization": (ANY, _spectral),
    "StackedRNNCells": ((2,), _stacked_cells),
    "TimeDistributed": ((2, 3, 4), _time_distributed),
    # Without variables of their own.
    "Activation": (ANY, lambda of, shape: L.Activation(of("tanh", "gelu", "softmax"))),
    "Dropout": (ANY, lambda of, shape: of(L.Dropout, L.GaussianNoise)(of(0.3, 0.6), seed=1)),
    "Pooling": ((3,), lambda of, shape: of(L.AveragePooling2D, L.MaxPooling2D)(min(2, *shape[:2]), padding="same")),
    "ActivityRegularization": (ANY, lambda of, shape: L.ActivityRegularization(l2=of(0.01, 0.1))),
}


def pieces_of_tf_keras(layers: Any) -> Pieces:
    """The same table with the layers of tf_keras that have a rule, from `tf_keras.layers`."""
    affine = {"center": (True, False), "scale": (True, False)}
    plain = {name: _convolution(getattr(layers, name), grouped=True) for name in ("Conv1D", "Conv2D")}
    depthwise = {
        name: _convolution(getattr(layers, name), depthwise=True) for name in ("DepthwiseConv1D", "DepthwiseConv2D")
    }
    others = {name: _convolution(getattr(layers, name)) for name in ("Conv3D", "SeparableConv1D", "SeparableConv2D")}
    builders = {
        **plain,
        **depthwise,
        **others,
        "BatchNormalization": _normalization(
            layers.BatchNormalization, axis=(-1, 1), synchronized=(False, True), momentum=(0.9, 0.5), **affine
        ),
        "Dense": _dense(layers.Dense),
        "EinsumDense": _einsum(layers.EinsumDense),
        "Embedding": _embedding(layers.Embedding),
        "GroupNormalization": _group_normalization(layers.GroupNormalization),
        "LayerNormalization": _normalization(layers.LayerNormalization, **affine),
        "MultiHeadAttention": _heads(layers.MultiHeadAttention),
        "PReLU": _prelu(layers.PReLU),
        "Activation": lambda of, shape: layers.Activation(of("tanh", "gelu", "softmax")),
        "Pooling": lambda of, shape: of(layers.AveragePooling2D, layers.MaxPooling2D)(
            min(2, *shape[:2]), padding="same"
        ),
    }
    return {name: (PIECES[name][0], make) for name, make in sorted(builders.items())}


WITHOUT_RULE = ("Activation", "Dropout", "Pooling", "ActivityRegularization")
RULES = tuple(name for name in PIECES if name not in WITHOUT_RULE)
FIRST = tuple(name for name, (ranks, _) in PIECES.items() if ranks in (IDS, ("signal",), (5,)))

WIRINGS = ("once", "nested", "residual", "twice", "averaged")
REDUCTIONS = ("sum_over_batch_size", "sum", "mean_with_sample_weight")
WEIGHTS: dict[str, Callable[[np.random.Generator, int], np.ndarray | None]] = {
    "none": lambda rng, batch: None,
    "positive": lambda rng, batch: rng.uniform(0.1, 3.0, batch).astype("float32"),
    "some zero": lambda rng, batch: np.append(0.0, rng.uniform(0.1, 2.0, batch - 1)).astype("float32"),
}
CLASSES = 3
# What makes the loss from a module of losses, and the targets.
LOSSES: dict[str, tuple[Callable[..., Any], Callable[[np.random.Generator, int], np.ndarray]]] = {
    "sparse": (
        lambda of, **more: of.SparseCategoricalCrossentropy(from_logits=True, **more),
        lambda rng, batch: rng.integers(0, CLASSES, batch),
    ),
    "smoothed": (
        lambda of, **more: of.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, **more),
        lambda rng, batch: np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, batch)],
    ),
    "mean squared": (
        lambda of, **more: of.MeanSquaredError(**more),
        lambda rng, batch: rng.normal(size=(batch, CLASSES)).astype("float32"),
    ),
    "Huber": (
        lambda of, **more: of.Huber(**more),
        lambda rng, batch: rng.normal(size=(batch, CLASSES)).astype("float32"),
    ),
    "binary": (
        lambda of, **more: of.BinaryCrossentropy(from_logits=True, **more),
        lambda rng, batch: rng.integers(0, 2, (batch, CLASSES)).astype("float32"),
    ),
}
POLICIES = ("float32", "float64", "mixed_bfloat16", "mixed_float16")
WAYS = ("eager", "graph", "jit")


def with_rank(x: Any, rank: int, library: Any = keras) -> Any:
    """A tensor with as many axes beside the batch's: axes before the last are joined, or axes of size 1 added."""
    shape = tuple(x.shape[1:])
    if len(shape) > rank:
        joined = len(shape) - rank + 1
        shape = (math.prod(shape),) if rank == 1 else (*shape[: rank - 2], math.prod(shape[rank - 2 : -1]), shape[-1])
        assert rank == 1 or len(shape) == rank, joined
    while len(shape) < rank:
        shape = (*shape[:-1], 1, shape[-1]) if len(shape) > 1 else (shape[0], 1)
    return x if shape == tuple(x.shape[1:]) else library.layers.Reshape(shape)(x)


def input_of(network: Network) -> tuple[tuple[int, ...], bool]:
    """The input's shape without the batch, and whether it is whole numbers."""
    of = Choices(network.sizes)
    kind = PIECES[network.pieces[0].name][0][-1]
    if kind == "ids":
        return (of(3, 5, 1),), True
    if kind == "signal":
        return (of(16, 21), of(1, 2)), False
    side = {1: (), 2: (4, 3, 7, 1), 3: (4, 3, 5), 4: (3, 2), 5: (2, 3)}[kind]
    return (*(of(*side) for _ in range(kind - 1)), of(2, 3, 1)), False


def wired(wiring: str, make: Callable[[], Any], x: Any, library: Any = keras) -> Any:
    """A layer's output for x, wired in one of `WIRINGS`; once where its output has another shape than that needs."""
    layer, layers = make(), library.layers
    floats = dtype_name(x).startswith("float")
    if wiring == "nested" and floats:
        inputs = library.Input(tuple(x.shape[1:]), dtype=x.dtype)
        return library.Model(inputs, layer(inputs))(x)
    y = layer(x)
    if wiring == "averaged" and floats:
        return layers.Average()([y, layer(layers.Activation("tanh")(x))])
    if tuple(y.shape) == tuple(x.shape) and x.dtype == y.dtype:
        if wiring == "residual":
            return layers.Add()([x, y])
        if wiring == "twice":
            return layer(y)
    return y


def dtype_name(t: Any) -> str:
    """The name of a symbolic tensor's dtype, a string in Keras 3."""
    return str(getattr(t.dtype, "name", t.dtype))


def model_of(network: Network, library: Any = keras, pieces: Pieces | None = None) -> Any:
    """The network, with weights drawn by its seed.

    Args:
        network: The network.
        library: keras or tf_keras.
        pieces: The layers' table; `PIECES` for None.
    """
    pieces = PIECES if pieces is None else pieces
    shape, whole = input_of(network)
    inputs = x = library.Input(shape, dtype="int32" if whole else None)
    for piece in network.pieces:
        of = Choices(piece.numbers)
        ranks, make = pieces[piece.name]
        if ranks not in (IDS, ("signal",)):
            rank = len(x.shape) - 1
            x = with_rank(x, min(ranks, key=lambda r: abs(r - rank)), library)
        x = wired(piece.wiring, lambda of=of, make=make, x=x: make(of, tuple(x.shape[1:])), x, library)
    outputs = library.layers.Dense(CLASSES, dtype="float32" if "mixed" in network.policy else None)
    model = library.Model(inputs, outputs(with_rank(x, 1, library)))
    rng = np.random.default_rng(network.seed)
    for v in model.trainable_variables:
        if network.policy == "float64":
            v.regularizer = None  # Keras cannot add a float64 term to its float32 loss
        value = np.asarray(v)
        v.assign((value + 0.3 * rng.normal(size=value.shape)).astype(value.dtype))
    return model


def data_of(network: Network) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Inputs, targets and weights of the examples."""
    rng = np.random.default_rng([1, network.seed])
    shape, whole = input_of(network)
    x = rng.integers(0, 5, (network.batch, *shape)) if whole else rng.normal(size=(network.batch, *shape))
    y = LOSSES[network.loss][1](rng, network.batch)
    return x.astype("int32" if whole else "float32"), y, WEIGHTS[network.weights](rng, network.batch)


def loss_of(network: Network, library: Any = keras) -> Any:
    """The loss of keras or tf_keras, which does not divide by the sum of the weights."""
    by_weights = network.reduction == "mean_with_sample_weight" and library is not keras
    return LOSSES[network.loss][0](library.losses, reduction=REDUCTIONS[0] if by_weights else network.reduction)


def rules_in(model: keras.Model) -> Counter[str]:
    """How many layers of each class in `RULES` the model has, cells of recurrent layers included."""
    found = [*layers_within(model), *(layer.cell for layer in layers_within(model) if hasattr(layer, "cell"))]
    names = Counter(type(layer).__name__ for layer in {id(layer): layer for layer in found}.values())
    return Counter({name: number for name, number in names.items() if name in RULES})


def _drawn(
    draw: Callable[[int], int],
    required: Sequence[str] = (),
    ways: Sequence[str] = WAYS,
    policies: Sequence[str] = ("float32",) * 6 + POLICIES,
    pieces: Iterable[str] = (),
) -> Network:
    """A network from a function that draws a number below another one.

    Args:
        draw: Draws.
        required: Pieces that are among the network's.
        ways: Ways to run that may be drawn.
        policies: Dtype policies that may be drawn.
        pieces: Pieces that may be drawn; all if there are none.
    """

    def one_of(values: Sequence[Any]) -> Any:
        return values[draw(len(values))]

    names = list(required)
    movable = [name for name in pieces or PIECES if name not in FIRST]
    while len(names) < 1 + len(required) // 2 or (len(names) < 4 and draw(2)):
        names.insert(draw(len(names) + 1), one_of(movable))
    first = [name for name in names if name in FIRST]
    names = first[:1] + [name for name in names if name not in FIRST]
    if "ActivityRegularization" in names:  # as a regularizer in float64
        policies = tuple(policy for policy in policies if policy != "float64")
    made_of = tuple(
        Piece(name, one_of(WIRINGS) if draw(2) else "once", tuple(draw(12) for _ in range(8))) for name in names
    )
    network = Network(
        pieces=made_of,
        sizes=tuple(draw(12) for _ in range(6)),
        loss=one_of(tuple(LOSSES)),
        reduction=REDUCTIONS[0] if draw(2) else one_of(REDUCTIONS),
        weights=one_of(tuple(WEIGHTS)),
        batch=one_of((3, 2, 1, 5)),
        policy=one_of(policies),
        way=one_of(ways),
        seed=draw(1000),
    )
    # Keras cannot add a half-precision term to its float32 loss, TensorFlow has no Fourier transform of bfloat16, and
    # XLA draws other random numbers than the reference.
    cannot = {"ActivityRegularization": "mixed", "STFTSpectrogram": "mixed_bfloat16"}
    if any(cannot.get(name, "none") in network.policy for name in names):
        network = dataclasses.replace(network, policy="float32")
    if "Dropout" in names and network.way == "jit":
        network = dataclasses.replace(network, way="graph")
    return network


def numbered(number: int, required: Sequence[str], **may_be_drawn: Any) -> Network:
    """The network of a number, which has the required pieces; see `_drawn` for what else may be given."""
    rng = np.random.default_rng([20, number])
    return _drawn(lambda below: int(rng.integers(below)), required, **may_be_drawn)


@strategies.composite
def networks(draw: Any, required: Sequence[str] = (), **may_be_drawn: Any) -> Network:
    """Networks with the required pieces, for hypothesis; see `_drawn` for what else may be given."""
    return _drawn(lambda below: draw(strategies.integers(0, below - 1)), required, **may_be_drawn)
