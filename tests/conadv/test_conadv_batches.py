"""Every batch is trained on once, beside its own adversarial images, whatever the data."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conadv_cases import assert_close, conadv, images, network, number
from selection import long

pytestmark = [
    pytest.mark.each_value,
    pytest.mark.quick_on_jax("test_batch_by_batch_equals_fit[1]"),
]

FIT = {"batch_size": 8, "verbose": 0, "shuffle": False}


def numbered(size):
    """Images that tell their number: all pixels 10 * (i + 1)."""
    x = np.ones((size, 6, 6, 2), "float32") * 10 * (1 + np.arange(size, dtype="float32"))[:, None, None, None]
    return x, np.arange(size) % 3


def spied(**arguments):
    """A model that notes the numbers of the images of every update, after a look at their adversarial images."""
    model = conadv(epsilon=2.0, compiled=False, **arguments)
    seen = []
    train = model.train_on_pair

    def train_on_pair(data, adversarial):
        x, adversarial = np.asarray(data[0]), np.asarray(adversarial)
        assert adversarial.shape == x.shape and np.abs(adversarial - x).max() <= 2.0 + 1e-4
        seen.append([round(float(v) / 10) - 1 for v in x[:, 0, 0, 0]])
        return train(data, adversarial)

    model.train_on_pair = train_on_pair
    return model, seen


def dataset(size=20, batch=8):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(numbered(size)).batch(batch)


EPOCH = [list(range(8)), list(range(8, 16)), list(range(16, 20))]


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("kind", ["arrays", "known", "unknown", "generator"])
def test_n_batches_make_n_updates(kind, staleness):
    model, seen = spied(staleness=staleness)
    x, y = numbered(20)
    if kind == "arrays":
        history = model.fit(x, y, epochs=2, **FIT)
    elif kind == "generator":
        batches = ((x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16) * 2)
        history = model.fit(batches, steps_per_epoch=3, epochs=2, verbose=0)
    else:
        data = dataset() if kind == "known" else dataset().filter(lambda x, y: True)
        history = model.fit(data, epochs=2, verbose=0)
    assert seen == EPOCH * 2
    assert number(model.optimizer.iterations) == number(model.stale.step) == 6
    assert len(history.epoch) == 2


@pytest.mark.parametrize("staleness", [long(0), 1, long(2)])
def test_an_infinite_dataset_goes_on_from_epoch_to_epoch(staleness):
    tf = pytest.importorskip("tensorflow")
    model, seen = spied(staleness=staleness)
    drawn = []

    def note(i):
        drawn.append(int(i))
        return np.int64(i)

    data = tf.data.Dataset.range(1000).map(lambda i: tf.numpy_function(note, [i], tf.int64))
    data = data.map(lambda i: (tf.fill([8, 6, 6, 2], 10.0 * tf.cast(i + 1, tf.float32)), tf.zeros([8], tf.int64)))
    data = data.map(lambda x, y: (tf.ensure_shape(x, [8, 6, 6, 2]), y))
    options = tf.data.Options()
    options.autotune.enabled = False
    model.fit(data.with_options(options), steps_per_epoch=2, epochs=3, verbose=0)
    assert [numbers[0] for numbers in seen] == [0, 1, 2, 3, 4, 5]
    assert max(drawn) <= 5 + 2  # what Keras itself may fetch in advance


def test_an_epoch_shorter_than_the_data_leaves_nothing_in_flight():
    model, seen = spied(staleness=1)
    model.fit(dataset(), steps_per_epoch=2, epochs=1, verbose=0)
    model.fit(dataset(), epochs=1, verbose=0)
    assert seen == EPOCH[:2] + EPOCH


def test_nothing_leaks_out_of_a_fit_that_failed():
    class Stop(Exception):
        pass

    def stop(batch, logs):
        raise Stop

    model, seen = spied(staleness=1)
    with pytest.raises(Stop):
        model.fit(dataset(), callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)], verbose=0)
    x, y = numbered(24)
    model.fit(x[20:], y[20:], **FIT)
    assert seen == [EPOCH[0], [20, 21, 22, 23]]


def test_training_on_another_batch_inside_fit_loses_nothing():
    model, seen = spied(staleness=1)
    x, y = numbered(24)
    aside = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: model.train_on_batch(x[20:], y[20:]))
    model.fit(dataset(), callbacks=[aside], verbose=0)
    assert seen == [numbers for batch in EPOCH for numbers in (batch, [20, 21, 22, 23])]


def test_stopping_early_and_going_on():
    model, seen = spied(staleness=1)

    def stop(batch, logs):
        model.stop_training = True

    model.fit(dataset(), callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)], verbose=0)
    model.fit(dataset(), verbose=0)
    assert seen == [EPOCH[0], *EPOCH]


@pytest.mark.parametrize("staleness", [long(0), 1, long(2)])
def test_batch_by_batch_equals_fit(staleness):
    """What is attacked in the step itself is what is attacked a step ahead."""
    x, y = images(32)
    compiled = staleness == 1
    fitted, stepped = (conadv(network(dropout=0.2), staleness=staleness, compiled=compiled) for _ in range(2))
    fitted.fit(x, y, **FIT)
    for i in (0, 8, 16, 24):
        logs = stepped.train_on_batch(x[i : i + 8], y[i : i + 8], return_dict=True)
    assert logs["adversarial_loss"] > 0
    assert_close(fitted, stepped, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_several_steps_per_call():
    x, y = images(40)
    models = [conadv(compile_arguments={"steps_per_execution": n}, compiled=True) for n in (1, 2)]
    ends = []
    counter = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(batch))
    models[0].fit(x, y, **FIT)
    models[1].fit(x, y, callbacks=[counter], **FIT)
    assert len(ends) == 3
    assert_close(*models)


@pytest.mark.parametrize("steps_per_execution", [1, pytest.param(2, marks=pytest.mark.long)])
def test_it_is_traced_once(steps_per_execution):
    """Whatever the size of the last batch, and in a second fit. JAX traces each pair of sizes: 8 and 8, 8 and 6, 6."""
    x, y = images(30)
    model = conadv(compile_arguments={"steps_per_execution": steps_per_execution}, compiled=True, staleness=1)
    traces = []
    update = model._update
    model._update = lambda *args: traces.append(1) or update(*args)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    assert number(model.optimizer.iterations) == 24
    assert len(traces) == (3 if keras.backend.backend() == "jax" else 1)
