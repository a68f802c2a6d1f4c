"""GrowBatchSize: updates of several batches are those of the concatenated batch, without a new trace."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L

import tf_largebatch as lb
from tf_largebatch.callbacks import GradientNoiseScale, GrowBatchSize, load_checkpoint, save_checkpoint
from tf_largebatch.training import large_batch_model

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(size=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 5)).astype("float32"), rng.integers(0, 3, size)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    hidden = L.Dense(4, activation="tanh", kernel_regularizer="l2")
    return keras.Sequential([keras.Input((5,)), hidden, L.LayerNormalization(), L.Dense(3)], name="net")


def compiled(optimizer=None, model=lb.LargeBatchModel, **kwargs):
    model = model(network(), **kwargs)
    model.compile(optimizer or lb.CLARS(1.0), CROSS_ENTROPY)
    return model


def weights(model):
    return [keras.ops.convert_to_numpy(v) for v in model.model.weights]


def assert_same(a, b, tolerance=1e-6):
    for one, other in zip(weights(a), weights(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.fixture
def traces(monkeypatch):
    """How often an update was traced."""
    found = []
    original = large_batch_model.LargeBatchModel._update

    def counted(self, *args):
        found.append(1)
        return original(self, *args)

    monkeypatch.setattr(large_batch_model.LargeBatchModel, "_update", counted)
    return found


def test_batches_of_a_group_equal_the_concatenated_batch_and_carry_over():
    x, y = data(40)
    whole, parts = compiled(), compiled()
    whole_noise = GradientNoiseScale()
    for _ in range(2):  # two updates of the same 20 examples
        whole.fit(x[:20], y[:20], batch_size=20, shuffle=False, verbose=0, callbacks=[whole_noise])
    callback = GrowBatchSize(maximum=20, minimum=20)
    # Epochs of 16 examples, batches of 4: of 10 batches 5 make an update, across the ends of epochs.
    order = np.concatenate([np.arange(20), np.arange(20)])
    parts.fit(x[order[:16]], y[order[:16]], batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
    assert callback.batch_size == 0
    rest = order[16:]
    history = parts.fit(x[rest], y[rest], batch_size=4, shuffle=False, verbose=0, callbacks=[callback]).history
    assert int(parts.optimizer.iterations) == 2
    assert_same(whole, parts)
    np.testing.assert_allclose(
        list(whole.optimizer.gradient_norms().values()), list(parts.optimizer.gradient_norms().values()), rtol=1e-5
    )
    assert history["batch_size"] == [20]
    np.testing.assert_allclose(history["noise_scale"], [whole_noise.of_network().noise_scale], rtol=1e-3)
    assert parts.accumulation is None and parts.noise_scale_averages is None


def test_nothing_is_traced_again_when_the_size_changes(traces):
    x, y = data(32)
    model = compiled(keras.optimizers.SGD(0.1))
    callback = GrowBatchSize(maximum=16, schedule={0: 4, 1: 8, 2: 16})
    history = model.fit(x, y, batch_size=4, epochs=4, verbose=0, callbacks=[callback]).history
    assert history["batch_size"] == [4, 8, 16, 16]
    assert int(model.optimizer.iterations) == 8 + 4 + 2 + 2
    before = len(traces)
    assert before <= 3
    model.fit(x, y, batch_size=4, verbose=0)  # without the callback: an update a batch
    assert int(model.optimizer.iterations) == 16 + 8


@pytest.mark.long
def test_a_resumed_run_goes_on_with_its_group(tmp_path):
    x, y = data(24)

    def made():
        return compiled(keras.optimizers.SGD(0.1, 0.9)), GrowBatchSize(maximum=16, schedule={0: 16})

    undisturbed, callback = made()
    undisturbed.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[callback])
    model, callback = made()
    callback.attach(model)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
    save_checkpoint(tmp_path / "checkpoint.npz", model, 1)
    resumed, callback = made()
    callback.attach(resumed)
    assert load_checkpoint(tmp_path / "checkpoint.npz", resumed) == 1
    resumed.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
    assert int(resumed.optimizer.iterations) == 3
    assert_same(undisturbed, resumed, 0)


@pytest.mark.parametrize(
    ("noise", "settings", "expected"),
    [
        (40.0, {}, 16.0),  # at most twice the present batch
        (12.0, {}, 12.0),
        (12.0, {"multiple": 0.5}, 6.0),
        (1.0, {}, 4.0),
        (1.0, {"grow_only": True}, 8.0),
        (np.inf, {}, 16.0),
        (np.nan, {}, 8.0),
        (40.0, {"maximum": 10}, 10.0),
        (1.0, {"minimum": 6}, 6.0),
    ],
)
def test_the_size_follows_the_noise_scale(monkeypatch, noise, settings, expected):
    callback = GrowBatchSize(**{"maximum": 1000, **settings})
    callback._accumulation.target = 8
    monkeypatch.setattr(GrowBatchSize, "batch_size", 8)
    monkeypatch.setattr(GrowBatchSize, "noise_scale", type("Found", (), {"noise_scale": noise}))
    callback._choose()
    assert callback._accumulation.target == expected


def test_the_noise_scale_of_normalization_layers():
    x, y = data(24)
    model = compiled(keras.optimizers.SGD(0.1))
    everything, some = GradientNoiseScale(), GrowBatchSize(maximum=24, layers="normalization", every=2)
    history = model.fit(x, y, batch_size=4, verbose=0, callbacks=[everything, some]).history
    tensors = [one for path, one in everything.of_tensors().items() if "normalization" in path]
    expected = sum(one.variance for one in tensors) / sum(one.squared_gradient for one in tensors)
    assert len(tensors) == 2
    np.testing.assert_allclose(history["noise_scale"], [max(expected, 0) if expected > 0 else np.inf], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maximum": 0}, "maximum must be a whole number of 1 or more; received maximum=0"),
        (
            {"maximum": 8, "minimum": 9},
            "minimum must be a whole number from 1 to maximum=8, or None",
        ),
        ({"maximum": 8.5}, "maximum must be a whole number"),
        ({"maximum": 8, "grow_only": "yes"}, "grow_only must be True or False"),
        ({"maximum": 8, "multiple": 0.0}, "multiple must be above 0 and finite"),
        ({"maximum": 8, "multiple": 1.0, "schedule": {0: 4}}, "multiple must be None with schedule"),
        ({"maximum": 8, "schedule": {1: 4}}, "schedule must be a function of the epoch, or .*received schedule={1: 4}"),
        ({"maximum": 8, "schedule": {0: 4}, "every": 3}, "every must be 'epoch' with schedule"),
        ({"maximum": 8, "layers": "dense"}, "layers must be one of 'all', 'normalization'"),
        ({"maximum": 8, "every": 0}, "every must be a positive integer or 'epoch'"),
        ({"maximum": 8, "decay": 1}, "decay must be at least 0 and below 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GrowBatchSize(**arguments)


def test_models_that_cannot_train_so_are_refused():
    x, y = data(8)
    plain = network()
    plain.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"model must be one that measures per-example gradient norms.*wrap it"):
        plain.fit(x, y, verbose=0, callbacks=[GrowBatchSize(maximum=8)])
    twice = compiled(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps must be None with GrowBatchSize"):
        twice.fit(x, y, verbose=0, callbacks=[GrowBatchSize(maximum=8)])
    summed = compiled("sgd")
    summed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"))
    with pytest.raises(ValueError, match=r"reduction must be .*received reduction='sum'"):
        summed.fit(x, y, verbose=0, callbacks=[GrowBatchSize(maximum=8)])


def test_several_replicas_are_refused(two_replicas):
    with two_replicas.scope():
        model = compiled("sgd")
    with pytest.raises(ValueError, match=r"strategy must be .*Keras cannot make an update under a condition"):
        GrowBatchSize(maximum=8).attach(model)
