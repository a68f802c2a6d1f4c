"""Micro-batches against the whole batch, for every class and reduction of keras.losses, and for losses of one's own."""

from __future__ import annotations

import importlib.util
import inspect

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import losses as K
from keras import ops
from selection import ON_JAX, long, long_unless

import tf_largebatch as lb

pytestmark = [
    pytest.mark.each_value,
    pytest.mark.quick_on_jax(
        "test_every_loss_of_keras",
        "test_masks_are_weighted_by_what_they_keep[3-arguments0]",
        "test_losses_of_ones_own_that_average_or_sum[sum]",
        "test_losses_of_ones_own_that_average_or_sum[for each example]",
        "test_losses_of_ones_own_that_couple_examples_are_refused",
        "test_losses_that_layers_add",
        "test_a_compute_loss_of_the_model",
        "test_a_generator_loses_no_batch_and_a_loop_of_ones_own_is_told_what_to_do",
    ),
]

B, STEPS, TOKENS = 7, 5, 20
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(0, 1, (B, 6)).astype("float32"), RNG.normal(size=(B, 3)).astype("float32")
CLASSES = RNG.integers(0, 4, B)
TEXTS, TAGS = RNG.integers(1, TOKENS, (B, STEPS)), RNG.integers(0, 3, (B, STEPS))
for i, length in enumerate([1, 1, 2, 2, 5, 5, 5]):
    TEXTS[i, length:] = 0


def vectors():
    return keras.Sequential([keras.Input((6,)), L.Dense(3)])


def probabilities():
    return keras.Sequential([keras.Input((6,)), L.Dense(4, activation="softmax")])


def sequences():
    return keras.Sequential([keras.Input((6,)), L.Dense(20), L.Reshape((5, 4)), L.Softmax()])


def tagger():
    stack = [L.Embedding(TOKENS, 4, mask_zero=True), L.SimpleRNN(4, return_sequences=True), L.Dense(3)]
    return keras.Sequential([keras.Input((STEPS,), dtype="int32"), *stack])


def two_heads():
    texts = keras.Input((STEPS,), dtype="int32")
    words = L.Embedding(TOKENS, 4, mask_zero=True)(texts)
    tags = L.Dense(3, name="tags")(L.SimpleRNN(4, return_sequences=True)(words))
    score = L.Dense(3, name="score", kernel_regularizer="l2", activity_regularizer="l2")(L.SimpleRNN(4)(words))
    return keras.Model(texts, {"tags": tags, "score": score})


def cross_entropy(**arguments):
    return K.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def update(make, loss, x, y, micro_batch_size, sample_weight=None, **compile_arguments):
    """The first update and the logs."""
    keras.utils.set_random_seed(0)
    net = make()
    if not net.built:
        net(x[:1])
    before = [v.numpy() for v in net.trainable_variables]
    model = lb.LargeBatchModel(net, micro_batch_size=micro_batch_size)
    # On JAX each operation by itself takes long to compile, on TensorFlow tracing does.
    model.compile(keras.optimizers.SGD(1.0), loss(), **{"run_eagerly": not ON_JAX, **compile_arguments})
    logs = model.fit(x, y, batch_size=B, shuffle=False, verbose=0, sample_weight=sample_weight).history
    return [v.numpy() - b for v, b in zip(net.trainable_variables, before, strict=True)], logs


def assert_equal_to_the_whole_batch(*arguments, micro_batch_size=3, **more):
    whole, logs = update(*arguments, None, **more)
    parts, part_logs = update(*arguments, micro_batch_size, **more)
    for one, other in zip(parts, whole, strict=True):
        # float32 sums in another order.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    for name, values in logs.items():
        np.testing.assert_allclose(part_logs[name], values, rtol=1e-4, err_msg=name)


EVERY = sorted(
    (c for c in vars(K).values() if inspect.isclass(c) and issubclass(c, K.Loss) and c is not K.Loss),
    key=lambda c: c.__name__,
)
COUPLED = {"Circle", "Dice", "Tversky"}  # docs/scale.md lists them


REDUCTIONS = ["mean_with_sample_weight", "sum_over_batch_size", "mean", "sum", "none"]


QUICK_ON_JAX = [K.CategoricalCrossentropy, K.MeanSquaredError, K.SparseCategoricalCrossentropy, K.Huber, K.Dice]
QUICK = [*QUICK_ON_JAX, K.CTC, K.BinaryCrossentropy, K.CosineSimilarity, K.KLDivergence, K.Circle, K.Tversky]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("cls", long_unless(EVERY, QUICK_ON_JAX if ON_JAX else QUICK), ids=lambda c: c.__name__)
def test_every_loss_of_keras(cls, reduction):
    make, y = probabilities, np.eye(4, dtype="float32")[CLASSES]
    if cls is K.CTC:
        make, y = sequences, RNG.integers(1, 4, (B, 2))
    elif cls.__name__ in ("SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy", "Circle"):
        y = CLASSES
    arguments = make, lambda: cls(reduction=reduction), X, y
    if cls.__name__ in COUPLED or reduction == "none":
        with pytest.raises(ValueError, match=r"couples the examples|must reduce to a scalar"):
            update(*arguments, 3)
    else:
        assert_equal_to_the_whole_batch(*arguments, sample_weight=np.linspace(0.1, 2, B))


def test_losses_over_other_axes():
    segments = RNG.integers(0, 2, (B, 6)).astype("float32")
    net = lambda: keras.Sequential([keras.Input((6,)), L.Dense(6, activation="sigmoid")])  # noqa: E731
    assert_equal_to_the_whole_batch(net, lambda: K.Dice(axis=1), X, segments)
    with pytest.raises(ValueError, match="couples the examples"):
        update(net, lambda: K.CosineSimilarity(axis=0), X, segments, 3)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize(
    "arguments",
    [{}, long({"reduction": "sum"}), {"reduction": "mean_with_sample_weight"}, long({"ignore_class": 1})],
    ids=str,
)
def test_masks_are_weighted_by_what_they_keep(arguments, micro_batch_size):
    weight = RNG.uniform(0, 1, (B, STEPS)) if arguments.get("reduction") == "mean_with_sample_weight" else None
    case = tagger, lambda: cross_entropy(**arguments), TEXTS, TAGS
    assert_equal_to_the_whole_batch(*case, micro_batch_size=micro_batch_size, sample_weight=weight)


def test_a_text_without_a_word():
    texts = TEXTS.copy()
    texts[0] = 0
    assert_equal_to_the_whole_batch(tagger, cross_entropy, texts, TAGS, micro_batch_size=1)


@pytest.mark.long
def test_masks_in_a_graph_and_several_outputs():
    assert_equal_to_the_whole_batch(
        two_heads,
        lambda: {"tags": cross_entropy(), "score": "mse"},
        TEXTS,
        {"tags": TAGS, "score": Y},
        run_eagerly=False,
        jit_compile=False,
        loss_weights={"tags": 0.3, "score": 2.0},
    )


def positive(y):
    return ops.cast(y > 0, "float32")


class Distance(K.Loss):
    def call(self, y_true, y_pred):
        return ops.sum(ops.abs(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: lambda y, p: ops.sum(ops.square(y - p)),
        lambda: lambda y, p: ops.mean(ops.square(y - p)),
        lambda: lambda y, p: ops.sum(ops.square(y - p), axis=-1),
        Distance,
        lambda: Distance(reduction="sum"),
    ],
    ids=["sum", "mean", "for each example", "class", "class, sum"],
)
def test_losses_of_ones_own_that_average_or_sum(loss):
    assert_equal_to_the_whole_batch(vectors, loss, X, Y)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y, p: ops.max(ops.square(y - p)),
        lambda y, p: ops.sum(ops.square(y - p) * positive(y)) / ops.sum(positive(y)),
        lambda y, p: -ops.sum((y - ops.mean(y)) * p) / ops.std(p),
        lambda y, p: K.sparse_categorical_crossentropy(
            ops.arange(ops.shape(p)[0]), ops.matmul(p, ops.transpose(p)), from_logits=True
        ),
    ],
    ids=["maximum", "masked by hand", "correlation", "contrastive"],
)
def test_losses_of_ones_own_that_couple_examples_are_refused(loss):
    with pytest.raises(ValueError, match=r"couples the examples of a batch: .* micro_batch_size=3"):
        update(vectors, lambda: loss, X, Y, 3)
    if importlib.util.find_spec("tensorflow") is None:
        return
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(B)
    model = lb.LargeBatchModel(vectors(), micro_batch_size=3)
    model.compile("sgd", loss, run_eagerly=True)
    with pytest.raises(ValueError, match="couples the examples"):
        model.fit(batches, verbose=0)


class Penalty(keras.Model):
    """`add_loss` of a mean or a sum over the examples."""

    def __init__(self, reduce):
        super().__init__()
        self.head, self.reduce = L.Dense(3), reduce

    def call(self, x):
        y = self.head(x)
        self.add_loss(self.reduce(keras.ops.sum(keras.ops.square(y), axis=-1)))
        return y


class OwnLoss(keras.Model):
    def __init__(self, reduce):
        super().__init__()
        self.head, self.reduce = L.Dense(3), reduce

    def call(self, x):
        return self.head(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.reduce(keras.ops.square(y - y_pred))


def test_losses_that_layers_add():
    assert_equal_to_the_whole_batch(lambda: Penalty(keras.ops.mean), lambda: "mse", X, Y)
    with pytest.raises(ValueError, match="What a layer adds by add_loss couples"):
        update(lambda: Penalty(keras.ops.sum), lambda: "mse", X, Y, 3)


def test_a_compute_loss_of_the_model():
    for reduce in (keras.ops.mean, keras.ops.sum):
        assert_equal_to_the_whole_batch(lambda reduce=reduce: OwnLoss(reduce), lambda: "mse", X, Y)
    with pytest.raises(ValueError, match="The model's compute_loss couples"):
        update(lambda: OwnLoss(keras.ops.max), lambda: "mse", X, Y, 3)


def test_a_generator_loses_no_batch_and_a_loop_of_ones_own_is_told_what_to_do():
    seen = []
    model = lb.LargeBatchModel(vectors(), micro_batch_size=3)
    model.compile("sgd", lambda y, p: ops.mean(ops.square(y - p)), run_eagerly=True)
    with pytest.raises(ValueError, match="call check_micro_batches"):
        model.training_step((ops.convert_to_tensor(X), ops.convert_to_tensor(Y)))
    counter = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    model.fit(((X, Y) for _ in range(2)), verbose=0, callbacks=[counter])
    assert len(seen) == 2
    model.training_step((ops.convert_to_tensor(X), ops.convert_to_tensor(Y)))
