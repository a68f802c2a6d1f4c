"""ConAdvModel: what it computes, on which models, labels, precisions."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conadv_cases import CLASSES, SHAPE, assert_close, conadv, images, nested, network, number, subclassed, weights
from keras import layers as L
from paper_settings import paper
from selection import long

import tf_largebatch as lb

pytestmark = [
    pytest.mark.each_value,
    pytest.mark.quick_on_jax(
        "test_micro_batches_equal_the_whole_batch[4-1]",
    ),
]

FIT = {"batch_size": 12, "verbose": 0, "shuffle": False}
LOGS = {"loss", "clean_loss", "adversarial_loss", "adversarial_accuracy", "perturbation", "bn_distance"}


@pytest.mark.parametrize("make", [lambda: keras.optimizers.SGD(0.05, 0.9), lambda: paper(lb.CLARS, 1.0)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_without_a_perturbation_it_is_clean_training_on_doubled_batches(batch_norm, make):
    """Sums of two means; batch norm without gamma and beta, of which each set has its own."""
    x, y = images(36)
    arguments = {"center": False, "scale": False} if batch_norm else {}
    model = conadv(network(batch_norm, **arguments), make(), epsilon=0.0, staleness=1)
    doubled = lb.LargeBatchModel(network(batch_norm, **arguments))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    doubled.compile(make(), loss, loss_weights=2.0, run_eagerly=keras.backend.backend() == "tensorflow")
    twice = np.concatenate([np.tile(np.arange(i, i + 12), 2) for i in (0, 12, 24)])
    losses = [
        model.fit(x, y, **FIT).history["loss"],
        doubled.fit(x[twice], y[twice], batch_size=24, verbose=0, shuffle=False).history["loss"],
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    # Three updates of float32 sums in another order.
    assert_close(model.model, doubled.model, rtol=1e-4, atol=1e-5)
    if batch_norm:
        for auxiliary, main in model.adversarial_batch_norms.replacements().items():
            for a, b in zip(auxiliary.weights, main.weights, strict=True):
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "make, auxiliary", [long(network, 1), (nested, 2), long(subclassed, 1), (lambda: network(False), 0)]
)
def test_kinds_of_models(make, auxiliary):
    x, y = images(30)
    inner = make()
    model = conadv(inner, paper(lb.CLARS, 0.5))
    history = model.fit(x, y, **FIT).history
    assert np.all(np.isfinite([v for values in history.values() for v in values]))
    assert set(history) == (LOGS if auxiliary else LOGS - {"bn_distance"})
    replacements = model.adversarial_batch_norms.replacements()
    assert len(replacements) == auxiliary and number(model.optimizer.iterations) == 3
    for main, auxiliary in replacements.items():
        for a, b in zip(main.weights, auxiliary.weights, strict=True):
            assert np.abs(a.numpy() - b.numpy()).max() > 0, a.path
    assert model.model is inner and not any("conadv" in v.path for v in inner.weights)
    assert all("call" not in vars(layer) for layer in inner._flatten_layers())
    # XLA compiles the wrapper's program and the model's one each in its own order of sums.
    tolerance = 0.0 if keras.backend.backend() == "tensorflow" else 1e-6
    found, expected = model.predict(x, verbose=0), inner.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_a_sequential_model_that_does_not_know_its_input():
    x, y = images(24)
    unbuilt = keras.Sequential([type(v).from_config(v.get_config()) for v in network().layers], name="net")
    model, known = conadv(unbuilt), conadv(network())
    assert not model.built and known.built
    model.fit(x, y, **FIT)
    assert [v.shape for v in model.weights] == [v.shape for v in known.weights]
    assert {v.path.split("/")[0] for v in unbuilt.weights} == {"net"}


def test_the_main_set_sees_clean_images_only():
    """And the main moving averages move once a step."""
    x, y = images()
    model = conadv(optimizer=keras.optimizers.SGD(0.0), staleness=0, augment=lambda x: 255 - x)
    model.fit(x, y, **FIT)
    adversarial = model.adversarial_images(x, y, step=0)
    for images_, bn_set in (
        (x, None),
        (adversarial, model.adversarial_batch_norms),
        (255 - x, model.augmented_batch_norms),
    ):
        alone = network()
        alone(images_, training=True)
        expected = [layer for layer in alone.layers if isinstance(layer, L.BatchNormalization)]
        found = model.model.layers if bn_set is None else bn_set.layers
        found = [layer for layer in found if isinstance(layer, L.BatchNormalization)]
        for a, b in zip(found[0].weights, expected[0].weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


def test_the_attack_changes_nothing_and_can_be_done_again():
    x, y = images()
    model = conadv(network(dropout=0.3), staleness=2, num_steps=2)
    model.fit(x, y, **FIT)
    before = [v.numpy() for v in model.variables]
    first = model.adversarial_images(x, y)
    model.attack_next((x, y))
    for v, b in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), b, err_msg=v.path)
    np.testing.assert_array_equal(first, model.adversarial_images(x, y))
    assert np.abs(first - model.adversarial_images(x, y, step=7)).max() > 0
    assert np.abs(first - model.adversarial_images(x, y, main=True)).max() > 0
    other = conadv(network(dropout=0.3), staleness=2, num_steps=2, seed=1)
    other.get_ready((x, y))
    other.set_weights(model.get_weights())
    assert np.abs(first - other.adversarial_images(x, y)).max() > 0


def test_the_attack_succeeds():
    x, y = images(60)
    net = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(0.05, 0.9), loss)
    net.fit(x, y, epochs=10, **FIT)
    for targeted in (True, False):
        model = conadv(net, targeted=targeted, epsilon=16.0, num_steps=4, random_start=0.0)
        adversarial = np.asarray(model.adversarial_images(x, y, main=True))
        assert float(loss(y, model(adversarial))) > float(loss(y, model(x))) + 0.1
        assert np.abs(adversarial - x).max() <= 16.0 + 1e-4 and 0 <= np.min(adversarial) and np.max(adversarial) <= 255


@pytest.mark.parametrize(
    "scale, value_range", [long(1.0, (0.0, 255.0)), long(1 / 255, (0, 1)), (1 / 127.5, [(0, 2), (0, 2)])]
)
def test_pixels_of_255_whatever_the_scaling(scale, value_range):
    x, y = images()
    net = keras.Sequential([keras.Input(SHAPE), L.Rescaling(1 / (128 * scale), -1), L.Flatten(), L.Dense(CLASSES)])
    model = conadv(net, epsilon=2.0, random_start=0.0, value_range=value_range, staleness=0)
    adversarial = model.adversarial_images(x * scale, y)
    moved = np.abs(adversarial / scale - x)
    # One step of full length, but where the range ends.
    np.testing.assert_allclose(moved[(x > 2) & (x < 253)], 2.0, rtol=1e-3)
    assert model.fit(x * scale, y, **FIT).history["perturbation"][0] == pytest.approx(np.mean(moved), rel=0.02)


def test_an_l2_ball():
    x, y = images()
    model = conadv(epsilon=20.0, norm="l2", random_start=0.0)
    distances = np.sqrt(np.sum(np.square(model.adversarial_images(x, y) - x), axis=(1, 2, 3)))
    assert np.all(distances <= 20 + 1e-3) and np.all(distances > 15)
    assert 15 < model.fit(x, y, **FIT).history["perturbation"][0] <= 20 + 1e-3


def test_noise_instead_of_an_attack():
    x, y = images(24)
    model = conadv(attack="noise", epsilon=8.0, staleness=2)
    history = model.fit(x, y, **FIT).history
    assert not [v for v in model.weights if "ago" in v.path]
    # Uniform in +-8, but for what the range cuts off.
    assert 3.5 < history["perturbation"][0] < 4.5


@pytest.mark.parametrize("smoothing", [long(0.0), 0.1])
def test_labels_of_either_form_and_logits_or_probabilities(smoothing):
    x, y = images(24)
    one_hot = np.eye(CLASSES, dtype="float32")[y]
    losses = keras.losses
    cases = [(losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing), one_hot, network())]
    probabilities = keras.Sequential([*network().layers, L.Softmax()], name="net")
    cases.append((losses.CategoricalCrossentropy(label_smoothing=smoothing), one_hot, probabilities))
    if not smoothing:
        cases.append((losses.SparseCategoricalCrossentropy(from_logits=True), y, network()))
        cases.append((losses.SparseCategoricalCrossentropy(from_logits=True), y[:, None].astype("float32"), network()))
        cases.append(("sparse_categorical_crossentropy", y, keras.Sequential([*network().layers, L.Softmax()])))
    models = []
    for loss, labels, net in cases:
        model = conadv(net, loss=loss, epsilon=8.0)
        model.fit(x, labels, **FIT)
        models.append(model)
    for other in models[1:]:
        # A softmax and its logarithm are rounded otherwise than their fused form.
        assert_close(models[0].model, other.model, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("optimizer", [lambda: keras.optimizers.SGD(0.01), lambda: paper(lb.CLARS, 0.1)])
def test_mixed_precision_stays_finite(policy, optimizer):
    keras.config.set_dtype_policy(policy)
    x, y = images(24)
    model = conadv(optimizer=optimizer(), staleness=1)
    history = model.fit(x, y, **FIT).history
    assert np.all(np.isfinite([v for values in history.values() for v in values]))
    adversarial = model.adversarial_images(x, y)
    assert np.all(np.isfinite(adversarial)) and 1.0 < np.abs(adversarial - x).mean() <= 4.0
    assert all(np.isfinite(v.numpy()).all() for v in model.weights)


@pytest.mark.parametrize("micro_batch_size, staleness", [(4, 1), long(5, 0)])
def test_micro_batches_equal_the_whole_batch(micro_batch_size, staleness):
    x, y = images(24)
    arguments = {"targeted": False, "random_start": 0.0, "staleness": staleness}
    models = [
        conadv(network(False), paper(lb.CLARS, 1.0), micro_batch_size=m, **arguments) for m in (None, micro_batch_size)
    ]
    histories = [model.fit(x, y, **FIT).history for model in models]
    assert_close(models[0], models[1], rtol=1e-4, atol=1e-5)
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("staleness", [pytest.param(0, marks=pytest.mark.long), 1])
def test_eager_compiled_and_by_xla(staleness):
    x, y = images(24)
    arguments = [{"run_eagerly": True}, {"run_eagerly": False, "jit_compile": False}]
    arguments.append({"run_eagerly": False, "jit_compile": True})
    # XLA turns the same random bits into other floats, so no random start.
    arguments = [{"compile_arguments": a, "staleness": staleness, "random_start": 0.0} for a in arguments]
    models = [conadv(**a) for a in arguments]
    for model in models:
        model.fit(x, y, **FIT)
    assert_close(models[0], models[1], rtol=1e-4, atol=1e-5)
    assert_close(models[1], models[2], rtol=1e-4, atol=1e-5)


def test_augmentation_by_a_keras_layer_depends_on_the_step_alone():
    x, y = images(24)
    layers = [L.RandomFlip("horizontal", seed=s) for s in (1, 2)]
    models = [conadv(augment=layer, staleness=1) for layer in layers]
    histories = [model.fit(x, y, **FIT).history for model in models]
    assert_close(*models)
    assert set(histories[0]) == LOGS | {"augmented_loss"}
    assert np.abs(models[0].augmented_batch_norms.layers[0].weights[0].numpy() - 1).max() > 0


def test_weight_regularizers_count_once():
    x, y = images()

    def net():
        keras.utils.set_random_seed(0)
        stack = [L.Rescaling(1 / 128, -1), L.Flatten(), L.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(0.1))]
        return keras.Sequential([keras.Input(SHAPE), *stack])

    model = conadv(net(), keras.optimizers.SGD(1.0), adversarial_weight=0.0)
    kernel = model.model.weights[0]
    before = kernel.numpy()
    history = model.fit(x, y, **FIT).history
    plain = net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    plain.fit(x, y, **FIT)
    np.testing.assert_allclose(kernel.numpy(), plain.weights[0].numpy(), rtol=1e-4, atol=1e-5)
    penalty = 0.1 * np.sum(before**2)
    np.testing.assert_allclose(history["loss"][0], history["clean_loss"][0] + penalty, rtol=1e-5)


def test_sample_weights_count_in_both_streams():
    x, y = images(24)
    model = conadv(network(False))
    before = weights(model.model)
    model.fit(x, y, sample_weight=np.zeros(24), **FIT)
    for a, b in zip(before, weights(model.model), strict=True):
        np.testing.assert_array_equal(a, b)
    model.fit(x, y, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, **FIT)
    assert any(np.any(a != b) for a, b in zip(before, weights(model.model), strict=True))


def test_frozen_batch_norm_is_frozen_in_all_sets():
    x, y = images(24)
    net = network()
    for layer in net.layers:
        layer.trainable = not isinstance(layer, L.BatchNormalization)
    model = conadv(net)
    model.fit(x, y, **FIT)
    auxiliary = model.adversarial_batch_norms.layers[0]
    np.testing.assert_array_equal(auxiliary.gamma.numpy(), 1.0)
    np.testing.assert_array_equal(auxiliary.moving_mean.numpy(), 0.0)


def test_weights_loaded_into_the_model_after_wrapping_are_those_of_step_0():
    x, y = images(24)
    trained = conadv()
    trained.fit(x, y, **FIT)
    late, early = conadv(), None
    late.model.set_weights(trained.model.get_weights())
    net = network()
    net.set_weights(trained.model.get_weights())
    early = conadv(net)
    for model in (late, early):
        model.fit(x, y, **FIT)
    assert_close(late, early)


def test_after_forget_the_earlier_weights_are_the_present_ones():
    x, y = images(24)
    model = conadv(staleness=2)
    model.fit(x, y, **FIT)
    model.forget()
    batch = (x[:12], y[:12])
    np.testing.assert_array_equal(model.attack_present(batch), model.adversarial_images(*batch))


def test_random_labels_do_not_reach_the_evaluation():
    x, y = images(24)
    model = conadv(compile_arguments={"metrics": ["accuracy"]})
    history = model.fit(x, y, validation_data=(x, y), **FIT).history
    assert set(history) == LOGS | {"accuracy", "val_loss", "val_accuracy"}
    plain = model.model
    plain.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), plain.evaluate(x, y, verbose=0), rtol=1e-6)


@pytest.mark.long
def test_weights_loaded_after_a_look_at_adversarial_images_are_those_of_step_0():
    x, y = images(12)
    trained = conadv()
    trained.fit(x, y, **FIT)
    late, early = conadv(), conadv()
    late.adversarial_images(x, y)
    for model in (late, early):
        model.model.set_weights(trained.model.get_weights())
        model.train_on_batch(x, y)
    assert_close(late, early)


def test_restored_weights_do_not_set_the_step_back():
    x, y = images(12)
    model = conadv()
    model.fit(x, y, **FIT)
    before = model.get_weights()
    model.fit(x, y, **FIT)
    model.set_weights(before)
    assert number(model.stale.step) == 2


def test_a_warmup_of_epsilon_is_used_and_traces_nothing_anew():
    x, y = images(24)
    model = conadv(random_start=0.0, epsilon=1.0, compiled=True)
    traces, update = [], model._update
    model._update = lambda *args: traces.append(1) or update(*args)
    warmup = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(model, "epsilon", 2.0 * epoch))
    sizes = model.fit(x, y, epochs=3, callbacks=[warmup], **FIT).history["perturbation"]
    assert len(traces) == 1 and sizes[0] == 0 < sizes[1] < sizes[2] <= 4
    with pytest.raises(ValueError, match="staleness must be the 1 of the constructor"):
        model.staleness = 2
