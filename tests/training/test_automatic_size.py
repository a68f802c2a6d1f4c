"""micro_batch_size="auto": the largest that fits, with nothing lost; and errors that say what would fit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L

import tf_largebatch as lb
from tf_largebatch.callbacks import load_checkpoint, save_checkpoint
from tf_largebatch.training import memory_limit
from tf_largebatch.training.memory_limit import LIMIT, OutOfMemory

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ON_JAX = keras.backend.backend() == "jax"
if ON_JAX:
    from tf_largebatch.backend.jax import sized_step


def data(size=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, 5)).astype("float32"), rng.integers(0, 3, size)


def network(*extra):
    keras.utils.set_random_seed(0)
    # Dropout draws from a seed that every pass advances; batch normalization has moving averages.
    stack = [keras.Input((5,)), L.Dense(4, activation="tanh"), *extra, L.Dropout(0.5, seed=1), L.Dense(3)]
    return keras.Sequential(stack, name="net")


def compiled(micro_batch_size="auto", optimizer=None, model=lb.LargeBatchModel, loss=CROSS_ENTROPY, net=None, **kwargs):
    model = model(net or network(L.BatchNormalization()), micro_batch_size=micro_batch_size, **kwargs)
    model.compile(optimizer or keras.optimizers.SGD(0.1, 0.9), loss, metrics=["accuracy"], jit_compile=ON_JAX)
    return model


@pytest.fixture
def memory_for(monkeypatch):
    """Makes steps of more than so many examples at a time run out of memory."""

    def set_limit(limit):
        tried = []
        if ON_JAX:

            def memory_of(jitted, arguments):
                jitted.lower(*arguments)
                size, batch = set_limit.model.examples_at_a_time, set_limit.model.traced_batch_size()
                tried.append(size or batch)
                return 10.0 * tried[-1]

            monkeypatch.setattr(sized_step, "memory_of", memory_of)
            monkeypatch.setenv(LIMIT, str(int(10 * limit)))
            return tried
        import tensorflow as tf

        original = lb.LargeBatchModel._finish

        def finish(self, result, batch_size):
            # Last in the step: metrics, seeds and moving averages have been assigned, and some weights.
            original(self, result, batch_size)
            size = self.examples_at_a_time
            at_a_time = batch_size if size is None else size

            def run(at_a_time):
                tried.append(int(at_a_time))
                if int(at_a_time) > limit:
                    raise MemoryError("injected")
                return np.int64(0)

            tf.py_function(run, [at_a_time], tf.int64)

        monkeypatch.setattr(lb.LargeBatchModel, "_finish", finish)
        return tried

    return set_limit


def fitted(model, x, y, **settings):
    settings = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0, "validation_data": (x, y), **settings}
    return model.fit(x, y, **settings).history


def assert_same(a, b):
    for one, other in zip(a.model.variables, b.model.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))


def test_nothing_is_lost_before_the_size_is_found(memory_for, capfd, tmp_path):
    """As if the size that is found had been given: weights, seeds, moving averages, metrics, batches, evaluation."""
    x, y = data(32)
    given = compiled(4)
    expected = fitted(given, x, y)
    model = memory_for.model = compiled()
    tried = memory_for(5)
    assert fitted(model, x, y) == expected
    assert_same(given, model)
    assert model.examples_at_a_time == 4 and model.micro_batch_size == "auto"
    assert tried[:1] == [16] and 4 in tried and max(tried[tried.index(4) :]) == 4
    said = capfd.readouterr().err.splitlines()
    (line,) = [line for line in said if "micro_batch_size" in line]
    assert line.startswith("micro_batch_size=auto: batches of 16 examples run in micro-batches of 4")
    # A resumed run begins with the size that it had.
    save_checkpoint(tmp_path / "checkpoint.npz", model, 2)
    resumed = compiled()
    load_checkpoint(tmp_path / "checkpoint.npz", resumed)
    assert resumed.examples_at_a_time == 4


@pytest.mark.long
def test_a_batch_that_fits_is_not_split(memory_for, capfd):
    x, y = data(16)
    model = memory_for.model = compiled()
    tried = memory_for(16)
    history = fitted(model, x, y, epochs=1)
    whole = compiled(None)
    assert history == fitted(whole, x, y, epochs=1)
    assert_same(whole, model)
    assert model.examples_at_a_time is None and set(tried) == {16}
    assert "micro_batch_size=auto: batches of 16 examples fit whole" in capfd.readouterr().err


def test_where_nothing_fits_the_variables_are_as_before(memory_for):
    x, y = data(16)
    model, untouched = compiled(), compiled()
    memory_for.model = model
    memory_for(0.5)
    with pytest.raises(OutOfMemory, match=r"ran out of memory with 1 example at a time.*: not even micro_batch_size=1"):
        fitted(model, x, y)
    assert_same(untouched, model)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.long
def test_a_loss_that_couples_examples_is_refused_only_where_the_batch_must_be_split(memory_for):
    x, y = data(16)

    def coupled(y_true, y_pred):
        return keras.ops.square(keras.ops.mean(y_pred))

    model = memory_for.model = compiled(loss=coupled)
    memory_for(16)
    fitted(model, x, y, epochs=1)
    model = memory_for.model = compiled(loss=coupled)
    memory_for(8)
    with pytest.raises(ValueError, match="coupled"):
        fitted(model, x, y, epochs=1)


@pytest.mark.parametrize(("micro_batch_size", "at_a_time", "advised"), [(None, 16, 8), (8, 8, 4)])
def test_the_error_says_what_would_fit(monkeypatch, micro_batch_size, at_a_time, advised):
    x, y = data(16)
    model = compiled(micro_batch_size)
    if ON_JAX:
        import jax

        def fails(state, iterator):
            jax.eval_shape(model.train_step, state, next(iterator))
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        monkeypatch.setattr(sized_step, "memory_of", lambda *_: 0.0)
    else:
        import tensorflow as tf

        def fails(iterator):
            model._traced_size = 16
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(model, "make_train_function", lambda force=False: None)
    model.train_function = fails
    message = (
        rf"with {at_a_time} examples at a time; micro_batch_size={micro_batch_size}: pass micro_batch_size={advised}"
    )
    with pytest.raises(OutOfMemory, match=message):
        fitted(model, x, y, epochs=1)


@pytest.mark.skipif(not ON_JAX, reason="TensorFlow cannot tell the memory of a step")
def test_the_memory_of_the_compiled_step_decides(monkeypatch):
    """Without stand-ins: a network whose activations of 64 examples take more than the limit, and of fewer less."""
    x, y = np.zeros((64, 2000), "float32"), np.zeros(64, int)
    net = keras.Sequential([keras.Input((2000,)), L.Dense(3)])
    model = compiled(net=net)
    monkeypatch.setenv(LIMIT, "1GiB")
    fitted(model, x, y, batch_size=64, epochs=1, validation_data=None)
    assert model.examples_at_a_time is None


@pytest.mark.long
def test_of_several_replicas(memory_for, two_replicas):
    x, y = data(32)
    with two_replicas.scope():
        given, model = compiled(4), compiled()
    expected = fitted(given, x, y)
    tried = memory_for(5)
    assert fitted(model, x, y) == expected
    assert_same(given, model)
    assert model.examples_at_a_time == 4 and 8 in tried


@pytest.mark.long
@pytest.mark.parametrize("staleness", [0, 1])
def test_conadv(memory_for, staleness):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (16, 4, 4, 1)).astype("float32"), rng.integers(0, 3, 16)

    def made(size):
        keras.utils.set_random_seed(0)
        net = keras.Sequential([keras.Input((4, 4, 1)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(3)])
        return compiled(size, model=lb.ConAdvModel, net=net, staleness=staleness, random_start=0.0)

    given, model = made(4), made("auto")
    settings = {"batch_size": 8, "epochs": 1, "validation_data": None}
    expected = fitted(given, x, y, **settings)
    memory_for.model = model
    memory_for(5)
    assert fitted(model, x, y, **settings) == expected
    assert_same(given, model)
    assert model.examples_at_a_time == 4


def test_evaluation_in_micro_batches_is_that_of_the_whole_batch():
    """With masks, weights, several outputs and logits behind a softmax."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 4, (10, 6)), [rng.uniform(0.5, 1.5, (10, 6)), rng.uniform(0.5, 1.5, 10)]
    y = [rng.integers(0, 3, (10, 6)), rng.integers(0, 3, 10)]
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6,), dtype="int32")
    hidden = L.Embedding(4, 5, mask_zero=True)(tokens)
    net = keras.Model(
        tokens, [L.Dense(3, activation="softmax")(hidden), L.Dense(3)(L.GlobalAveragePooling1D()(hidden))]
    )
    losses = ["sparse_categorical_crossentropy", CROSS_ENTROPY]
    found = []
    for size in (None, 4):
        model = lb.LargeBatchModel(net, micro_batch_size=size)
        model.compile("sgd", losses, jit_compile=ON_JAX)
        found.append(model.evaluate(x, y, sample_weight=weight, batch_size=10, verbose=0, return_dict=True))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_losses_that_layers_add_are_evaluated_whole():
    x, y = data(12)
    net = network(L.ActivityRegularization(l2=0.1))
    found = [compiled(size, net=net).evaluate(x, y, batch_size=12, verbose=0) for size in (None, 5)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_limit_of_the_environment():
    assert memory_limit.given_limit({}) is None
    assert memory_limit.given_limit({LIMIT: "1.5GiB"}) == 3 * 2**29
    assert memory_limit.given_limit({LIMIT: " 2000 "}) == 2000 and memory_limit.given_limit({LIMIT: "3k"}) == 3072
    for text in ("much", "0", "-1", "1.5.2"):
        with pytest.raises(ValueError, match=rf"{LIMIT} must be a number of bytes above 0.*received {LIMIT}='{text}'"):
            memory_limit.given_limit({LIMIT: text})
    assert 0 < memory_limit.available_of_system() < 2**60
    assert [memory_limit.readable(n) for n in (10, 2048, 3 * 2**20, 1.25 * 2**30)] == [
        "10 B",
        "2 KiB",
        "3 MiB",
        "1.25 GiB",
    ]


@pytest.mark.parametrize("value", ["large", "AUTO", 0, True])
def test_other_words_are_refused(value):
    with pytest.raises(ValueError, match="micro_batch_size must be a positive integer, 'auto' or None; received"):
        compiled(value)
    with pytest.raises(ValueError, match="norm_examples must be a positive integer or None; received"):
        lb.LargeBatchModel(network(), norm_examples="auto")
