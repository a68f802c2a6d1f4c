"""CLARS and LARS for tf_keras: numbers, norms handed over, errors, configuration."""

from __future__ import annotations

import inspect
import json
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from layerwise_cases import MALFORMED_NORMS, OUT_OF_RANGE
from paper_settings import paper
from reference import Reference, assert_follows, references
from tf_keras_optimizer_cases import (
    SHAPES,
    apply,
    apply_all,
    gradients,
    make,
    norms,
    other_arguments,
    small_model,
    variables,
)

from tf_largebatch.tf_keras.optimizers import CLARS, LARS

pytestmark = pytest.mark.each_value

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])
STEPS = 10


def difference(found, expected):
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)


@BOTH
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("classic", [True, False])
@pytest.mark.parametrize("momentum", [0.75, 0.0])
@pytest.mark.parametrize("decay, max_rate", [(0.0, None), (0.125, None), (0.125, 0.0625)])
def test_ten_steps_agree_with_numpy(cls, nesterov, classic, momentum, decay, max_rate):
    if nesterov and not momentum:
        return
    arguments = {
        "learning_rate": 0.5,
        "momentum": momentum,
        "eta": 0.125,
        "weight_decay_rate": decay,
        "nesterov": nesterov,
        "classic_momentum": classic,
        "epsilon": 0.25,
        "max_rate": max_rate,
        "unadapted_rate_factor": 0.5 if max_rate else 1.0,
    }
    if cls is CLARS:
        arguments["norm_exponent"] = 0.75 if nesterov else 1.0
        arguments["max_agreement"] = 0.5 if max_rate else None
    optimizer, trained = make(cls, **arguments, exclude_from_weight_decay=["head"]), variables()
    started = {path: variable.numpy() for path, variable in zip(SHAPES, trained, strict=True)}
    expected = references(arguments, started, not_adapted=["stem/bias"], not_decayed=["head/kernel"])
    all_gradients, all_norms = gradients(STEPS), norms(STEPS) if cls is CLARS else None
    found = apply_all(optimizer, all_gradients, trained, all_norms)
    assert_follows(optimizer, found, expected, all_gradients, all_norms)


@BOTH
def test_schedules_of_tf_keras_count_the_steps(cls):
    schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.5, 0.25, 1.0])
    optimizer, trained = make(cls, schedule, eta=0.125, max_rate=None), variables()
    reference = Reference(trained[0].numpy(), lr=None, eta=0.125)
    for rate, some in zip((0.5, 0.25, 1.0, 1.0), gradients(4), strict=True):
        apply(optimizer, some, trained)
        reference.lr = rate
        # Without decay the norm of the gradient is both optimizers'.
        reference.step(some[0])
    assert difference(trained[0].numpy(), reference.w) < 1e-6


@BOTH
def test_inside_a_function_as_outside(cls):
    optimizer, other = make(cls, 0.5, weight_decay_rate=0.1), make(cls, 0.5, weight_decay_rate=0.1)
    trained, expected = variables(), variables()
    handed = norms(3) if cls is CLARS else [None] * 3
    step = tf.function(lambda some, of: apply(optimizer, some, trained, of), autograph=False)
    for some, of in zip(gradients(3), handed, strict=True):
        step([tf.constant(g) for g in some], None if of is None else [tf.constant(n) for n in of])
        apply(other, some, expected, of)
    for one, two in zip(trained, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    assert optimizer.layerwise_rates() == pytest.approx(other.layerwise_rates(), rel=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(cls, dtype):
    optimizer, trained = make(cls, 0.5, eta=0.125), variables(dtype)
    reference = Reference(tf.cast(trained[0], tf.float64).numpy(), lr=0.5, eta=0.125)
    some = gradients(1)[0]
    apply(optimizer, [tf.cast(g, dtype) for g in some], trained)
    reference.step(tf.cast(tf.cast(some[0], dtype), tf.float64).numpy())
    # One rounding of the result to the variable's dtype; the rate is computed in float32 at least.
    tolerance = {"float16": 2**-10, "bfloat16": 2**-7, "float64": 1e-7}[dtype]
    assert difference(tf.cast(trained[0], tf.float64).numpy(), reference.w) < tolerance


@BOTH
@pytest.mark.parametrize("clipping", [{"clipnorm": 0.5}, {"clipvalue": 0.01}, {"global_clipnorm": 0.5}], ids=str)
def test_clipping_is_that_of_tf_keras_and_clars_measures_before_it(cls, clipping):
    # Nothing adapted, no momentum: SGD of tf_keras.
    optimizer = make(cls, 0.1, momentum=0.0, exclude_from_layer_adaptation=["."], **clipping)
    sgd = tf_keras.optimizers.legacy.SGD(0.1, **clipping)
    found = apply_all(optimizer, gradients(2), variables())
    for one, two in zip(found, apply_all(sgd, gradients(2), variables()), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    adapting = make(cls, 0.1, **clipping)
    some = gradients(1)
    apply_all(adapting, some, variables())
    unclipped = np.linalg.norm(some[0][2])
    measured = adapting.gradient_norms()["head/kernel"]
    assert measured == pytest.approx(unclipped, rel=1e-6) if cls is CLARS else measured < 0.6 < unclipped


@BOTH
def test_sparse_gradients_are_those_of_the_whole_tensor(cls):
    values, indices = tf.constant([[1.0] * 5, [2.0] * 5, [4.0] * 5]), tf.constant([1, 3, 1])
    dense = np.zeros((4, 5), "float32")
    dense[1], dense[3] = 5.0, 2.0
    found = []
    for head in (tf.IndexedSlices(values, indices, (4, 5)), tf.constant(dense)):
        optimizer, trained = make(cls, 0.5), variables()
        apply(optimizer, [*gradients(1)[0][:2], head], trained)
        found.append((trained[2].numpy(), optimizer.gradient_norms()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@BOTH
@pytest.mark.parametrize("classic", [True, False])
@pytest.mark.parametrize("decay, max_rate", [(0.0, None), (0.05, 0.1)])
def test_a_step_without_gradient_makes_no_leap(cls, classic, decay, max_rate):
    """The rule is that of core/rates.py and of LARS's denominator; tests/optimizers/test_update.py has every form."""
    arguments = {"classic_momentum": classic, "weight_decay_rate": decay, "max_rate": max_rate}
    optimizer, trained, some = make(cls, 8.0, **arguments), variables(), gradients(4)
    reference = Reference(
        trained[0].numpy(), lr=8.0, eta=optimizer.eta, decay=decay, classic=classic, max_rate=max_rate
    )
    some[3] = [0 * g for g in some[3]]
    for step in some:
        before = trained[0].numpy()
        apply(optimizer, step, trained)
        reference.step(step[0], float(np.linalg.norm(step[0])) if cls is CLARS else None)
    assert difference(trained[0].numpy(), reference.w) < 1e-5
    if cls is CLARS or not classic or not decay:
        assert optimizer.layerwise_rates()["stem/kernel"] == 0
    assert classic or np.array_equal(trained[0].numpy(), before)


@BOTH
def test_numpys_scalars_are_arguments(cls):
    kinds = {float: np.float32, bool: np.bool_, int: np.int64}
    given = {name: kinds.get(type(value), lambda v: v)(value) for name, value in other_arguments(cls).items()}
    config = cls(**given).get_config()
    assert json.loads(json.dumps(config)) == cls(**other_arguments(cls)).get_config()


@BOTH
def test_docstrings_are_whole(cls):
    assert "{{" not in cls.__doc__
    documented = set(re.findall(r"^        (\w+): ", cls.__doc__, re.MULTILINE))
    assert documented >= set(inspect.signature(cls).parameters)


@BOTH
def test_constraints_hold_after_the_update(cls):
    positive = tf.Variable(np.full((2, 2), 0.01, "float32"), constraint=tf_keras.constraints.NonNeg(), name="positive")
    apply(make(cls, 10.0, exclude_from_layer_adaptation=["."]), [np.ones((2, 2), "float32")], [positive])
    np.testing.assert_array_equal(positive, np.zeros((2, 2)))


@BOTH
def test_fit_of_tf_keras(cls):
    model = small_model()
    model.compile(make(cls, 0.5, eta=0.1), "mse")
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    losses = model.fit(x, x[:, :3], batch_size=8, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert list(model.optimizer.layerwise_rates()) == ["hidden/kernel", "hidden/bias", "head/kernel", "head/bias"]


def test_norms_by_path_as_by_list():
    by_list = apply_all(paper(CLARS, 0.5), gradients(1), variables(), norms(1))
    by_path = apply_all(paper(CLARS, 0.5), gradients(1), variables(), [dict(zip(SHAPES, norms(1)[0], strict=True))])
    reversed_list = paper(CLARS, 0.5)
    trained = variables()
    with reversed_list.measured_gradient_norms(norms(1)[0][::-1], trained[::-1]):
        reversed_list.apply_gradients(zip(map(tf.constant, gradients(1)[0]), trained, strict=True))
    for one, two, three in zip(by_list, by_path, trained, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_auto_falls_back_with_one_warning_and_per_example_raises():
    optimizer = paper(CLARS, 0.5)
    with pytest.warns(UserWarning, match="received no per-example gradient norms") as caught:
        apply_all(optimizer, gradients(2), variables())
    assert len(caught) == 1
    with pytest.raises(ValueError, match=r"no per-example gradient norms.*gradient_norms='replica'"):
        apply_all(paper(CLARS, 0.5, gradient_norms="per_example"), gradients(1), variables())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_all(paper(CLARS, 0.5), gradients(1), variables(), norms(1))
        apply_all(paper(CLARS, 0.5, gradient_norms="replica"), gradients(1), variables())
        nothing_adapted = {"exclude_from_layer_adaptation": ["."], "gradient_norms": "per_example"}
        apply_all(paper(CLARS, 0.5, **nothing_adapted), gradients(1), variables())
    assert paper(CLARS).reads_per_example_norms
    assert not paper(CLARS, gradient_norms="replica").reads_per_example_norms


@pytest.mark.parametrize("handed, message", MALFORMED_NORMS)
def test_malformed_norms(handed, message):
    with pytest.raises(ValueError, match=message):
        apply_all(paper(CLARS, 0.5), gradients(1), variables(), [handed])


def test_norms_that_are_already_summed():
    optimizer, trained = paper(CLARS, 0.5), variables()
    with optimizer.measured_gradient_norms(norms(1)[0]):
        optimizer.apply_gradients(
            zip(map(tf.constant, gradients(1)[0]), trained, strict=True), experimental_aggregate_gradients=False
        )
    for one, two in zip(trained, apply_all(paper(CLARS, 0.5), gradients(1), variables(), norms(1)), strict=True):
        np.testing.assert_array_equal(one, two)


@BOTH
def test_variables_without_gradient_are_left_alone(cls):
    optimizer, trained = make(cls, 0.5), variables()
    handed = [[None, None, np.float32(3.0)]] if cls is CLARS else None
    found = apply_all(optimizer, [[None, None, gradients(1)[0][2]]], trained, handed)
    for i in (0, 1):
        np.testing.assert_array_equal(found[i], variables()[i])
    assert list(optimizer.layerwise_rates()) == ["head/kernel"]


@BOTH
def test_a_nan_norm_or_gradient_stays_visible(cls):
    optimizer, trained = make(cls, 0.5, max_rate=0.1), variables()
    some = gradients(1)
    some[0][0][0, 0, 0, 0] = np.inf
    apply_all(optimizer, some, trained)
    assert np.isnan(optimizer.layerwise_rates()["stem/kernel"])
    assert np.isnan(trained[0].numpy()).all()


@BOTH
@pytest.mark.parametrize("argument, value", OUT_OF_RANGE)
def test_arguments_outside_their_range_are_named(cls, argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be .*; received {argument}={re.escape(repr(value))}"):
        cls(**{argument: value})


def test_other_bad_arguments():
    with pytest.raises(ValueError, match=r"^gradient_norms must be one of"):
        paper(CLARS, gradient_norms="exact")
    with pytest.raises(ValueError, match=r"^learning_rate must be a schedule of tf_keras.*Keras 3"):
        paper(CLARS, keras.optimizers.schedules.CosineDecay(0.1, 10))
    with pytest.raises(ValueError, match=r"^exclude_from_weight_decay must be .*'nowhere': .* none of the 3"):
        apply_all(paper(LARS, exclude_from_weight_decay=["nowhere"]), gradients(1), variables())
    optimizer = paper(LARS)
    apply_all(optimizer, gradients(1), variables())
    with pytest.raises(ValueError, match=r"the 3 variables of its first step, and .* are none of them"):
        apply_all(optimizer, gradients(1), variables())


@BOTH
def test_every_argument_survives_the_configuration(cls):
    arguments = other_arguments(cls)
    for optimizer in (cls(**arguments), cls(**arguments)):
        for _ in range(2):  # before and after the first step
            config = json.loads(json.dumps(optimizer.get_config()))
            assert {name: config[name] for name in arguments} == arguments
            assert cls.from_config(config).get_config() == optimizer.get_config()
            apply_all(optimizer, gradients(1), variables()) if not optimizer.built else None
    serialized = tf_keras.optimizers.serialize(optimizer)
    copy = tf_keras.optimizers.deserialize(serialized, use_legacy_optimizer=True)
    assert type(copy) is cls
    assert copy.get_config() == optimizer.get_config()


@BOTH
@pytest.mark.parametrize("value", [None, [], ["kernel"]])
def test_none_and_the_empty_list_differ_and_survive(cls, value):
    for argument in ("exclude_from_layer_adaptation", "exclude_from_weight_decay"):
        optimizer = make(cls, **{argument: value})
        assert optimizer.get_config()[argument] == value
        assert cls.from_config(optimizer.get_config()).get_config()[argument] == value
    adapted = make(cls, exclude_from_layer_adaptation=value)
    apply_all(adapted, gradients(1), variables())
    expected = {None: ["stem/kernel", "head/kernel"], "[]": list(SHAPES), "['kernel']": ["stem/bias"]}
    assert adapted.adapted_tensors() == expected[None if value is None else str(value)]


@BOTH
def test_schedules_and_global_clipping_survive_the_configuration(cls):
    optimizer = cls(tf_keras.optimizers.schedules.CosineDecay(0.5, 10), global_clipnorm=2.0)
    copy = cls.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert copy.get_config() == optimizer.get_config()
    assert copy.global_clipnorm == 2.0
    assert float(copy.learning_rate(5)) == pytest.approx(0.25)
