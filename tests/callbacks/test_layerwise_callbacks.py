"""Layer-wise values as CSV, TensorBoard scalars and in the progress bar."""

from __future__ import annotations

import contextlib
import csv

import keras
import numpy as np
import pytest
from paper_settings import paper

import tf_largebatch as lb
from tf_largebatch.callbacks import (
    LayerwiseProgress,
    LayerwiseRateRecorder,
    LayerwiseTensorBoard,
    layerwise_values,
)
from tf_largebatch.callbacks.layerwise_rates import read_layerwise_values
from tf_largebatch.norms import brute_force_gradient_norms
from tf_largebatch.plots.heat_map import read_rate_table

MEAN_SQUARES = keras.losses.MeanSquaredError()
# On JAX each operation by itself takes long to compile.
ON_JAX = keras.backend.backend() == "jax"


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 4)).astype("float32"), rng.normal(size=(12, 3)).astype("float32")


def fitted(optimizer, callbacks=(), epochs=2, wrapped=True, verbose=0, batch_size=4):
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="a"), keras.layers.Dense(3, name="b")])
    model = lb.LargeBatchModel(net) if wrapped else net
    model.compile(optimizer, MEAN_SQUARES)
    model.fit(*data(), batch_size=batch_size, epochs=epochs, verbose=verbose, shuffle=False, callbacks=list(callbacks))
    return model


def test_values_of_one_update():
    model = fitted(paper(lb.CLARS, 0.1, weight_decay_rate=0.1), epochs=0)
    expected = brute_force_gradient_norms(model.model, *data(), MEAN_SQUARES)
    model.fit(*data(), batch_size=12, verbose=0)
    values = layerwise_values(model)
    assert list(values) == [variable.path for variable in model.trainable_variables]
    for variable in model.trainable_variables:
        value = values[variable.path]
        np.testing.assert_allclose(value.weight_norm, np.linalg.norm(variable.numpy()), rtol=1e-5)
        np.testing.assert_allclose(value.gradient_norm, np.mean(expected[variable.path]), rtol=1e-5)
        assert (value.rate is None) == (len(variable.shape) < 2)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_agreement_is_the_ratio_of_the_two_norms(jit_compile, tmp_path):
    # No momentum, no decay: the first update is the gradient times a known rate.
    model = fitted(paper(lb.CLARS, 0.1, momentum=0.0, jit_compile=jit_compile), epochs=0)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    recorder = LayerwiseRateRecorder(tmp_path / "rates.csv", 1, batch_gradient_norms=True)
    model.fit(*data(), batch_size=12, verbose=0, callbacks=[recorder])
    for variable in model.trainable_variables:
        value = layerwise_values(model)[variable.path]
        moved = np.linalg.norm(variable.numpy() - before[variable.path])
        # A difference of float32 weights near 1 keeps some four digits of an update near 1e-3.
        np.testing.assert_allclose(value.batch_gradient_norm, moved / (0.1 * (value.rate or 1.0)), rtol=2e-3)
        np.testing.assert_allclose(value.gradient_agreement, value.batch_gradient_norm / value.gradient_norm)
        assert 0 < value.gradient_agreement <= 1


def test_agreement_is_asked_for_after_steps_have_been_traced_and_kept_from_then_on():
    model = fitted(paper(lb.CLARS, 0.1))
    assert layerwise_values(model).popitem()[1].gradient_agreement is None
    weights = len(model.optimizer.variables)
    model.fit(*data(), batch_size=12, verbose=0, callbacks=[LayerwiseProgress(["gradient_agreement"])])
    assert 0 < model.history.history["gradient_agreement"][-1] <= 1
    # Not part of what a checkpoint holds.
    assert len(model.optimizer.variables) == weights


@pytest.mark.long
def test_the_norm_of_the_batch_is_that_over_all_replicas(two_replicas):
    def agreements(scope, micro_batch_size=None):
        keras.utils.set_random_seed(0)
        with scope:
            net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
            model = lb.LargeBatchModel(net, micro_batch_size=micro_batch_size)
            model.compile(paper(lb.CLARS, 0.1), MEAN_SQUARES, jit_compile=False)
        shown = LayerwiseProgress(["gradient_agreement"], tensors=["a/kernel", "a/bias"])
        model.fit(*data(), batch_size=12, verbose=0, shuffle=False, callbacks=[shown])
        return [values[-1] for name, values in model.history.history.items() if name.startswith("gradient_agreement")]

    one = agreements(contextlib.nullcontext())
    assert len(one) == 2
    # Sums of 12 float32 terms in another order.
    np.testing.assert_allclose(agreements(two_replicas.scope()), one, rtol=1e-5)
    np.testing.assert_allclose(agreements(contextlib.nullcontext(), micro_batch_size=4), one, rtol=1e-5)


def test_agreement_is_unknown_without_per_example_norms():
    model = fitted(paper(lb.LARS, 0.1), [LayerwiseProgress(["rate", "gradient_agreement"])], wrapped=False)
    for value in layerwise_values(model).values():
        assert value.gradient_agreement is None and value.batch_gradient_norm > 0
    assert set(model.history.history) == {"loss", "rate"}


def test_values_come_out_of_a_loss_scaling_wrapper():
    keras.config.set_dtype_policy("mixed_float16")
    model = fitted(paper(lb.CLARS, 0.1))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert all(np.isfinite(value.weight_norm) for value in layerwise_values(model).values())


def test_every_value_is_in_the_csv_file(tmp_path):
    model = fitted(paper(lb.CLARS, 0.1), [LayerwiseRateRecorder(tmp_path / "rates.csv", 2, batch_gradient_norms=True)])
    rows = read_layerwise_values(tmp_path / "rates.csv")
    assert [update for update, path, _ in rows if path.endswith("a/kernel")] == [1, 2, 4, 6]
    values = layerwise_values(model)
    for update, path, found in rows[-len(values) :]:
        assert update == 6
        known = {name: number for name, number in vars(values[path]).items() if number is not None}
        assert found == known


def test_a_file_of_an_earlier_version_is_read_and_continued(tmp_path):
    path = tmp_path / "rates.csv"
    model = fitted(paper(lb.CLARS, 0.1), epochs=1)
    path.write_text("update,variable,rate,gradient_norm\n3,a/kernel,0.25,2.0\n3,a/bias,,1.0\n9,a/kernel,1.0,1.0\n")
    model.fit(*data(), batch_size=12, verbose=0, callbacks=[LayerwiseRateRecorder(path, 1)])
    rows = read_layerwise_values(path)
    assert rows[:2] == [(3, "a/kernel", {"rate": 0.25, "gradient_norm": 2.0}), (3, "a/bias", {"gradient_norm": 1.0})]
    assert {update for update, *_ in rows[2:]} == {4}
    with open(path, newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {7}


def scalars(directory):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow writes and reads TensorBoard's files")
    (file,) = directory.glob("layerwise/events.*")
    found = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_scalars_are_the_values(tmp_path):
    model = fitted(paper(lb.CLARS, 0.1), [LayerwiseTensorBoard(tmp_path, every=3, batch_gradient_norms=True)])
    found = scalars(tmp_path)
    assert {step for _, step in found} == {1, 3, 6}
    for path, value in layerwise_values(model).items():
        for name, number in vars(value).items():
            assert ((f"{name}/{path}", 6) in found) == (number is not None)
            if number is not None:  # stored as float32
                np.testing.assert_allclose(found[f"{name}/{path}", 6], number, rtol=1e-6)


def test_medians_are_shown_in_the_progress_bar_and_kept_in_the_history(capsys):
    shown = ("rate", "gradient_norm", "gradient_agreement")
    model = fitted(paper(lb.CLARS, 0.1), [LayerwiseProgress(shown)], verbose=1)
    values = [value for value in layerwise_values(model).values() if value.rate is not None]
    history = model.history.history
    for name in shown:
        assert history[name][-1] == np.median([getattr(value, name) for value in values])
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in shown)


def test_chosen_tensors_are_shown_by_their_paths(capsys):
    model = fitted(paper(lb.CLARS, 0.1), [LayerwiseProgress(["weight_norm"], tensors=["a/kernel"])], verbose=1)
    (path,) = (path for path in layerwise_values(model) if path.endswith("a/kernel"))
    assert f"weight_norm/{path}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerwiseProgress(["rates"]), "show must be a list of some of rate, .*; received show="),
        (lambda: LayerwiseProgress("rate"), "show must be a list of some of rate, .*; received show='rate'"),
        (lambda: LayerwiseProgress(every=True), "must be a positive integer or 'epoch'; received every=True"),
        (lambda: LayerwiseTensorBoard("logs", every=-1), "must be a positive integer or 'epoch'; received every=-1"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refusals_when_training_begins(tmp_path):
    with pytest.raises(ValueError, match=r"(?i)optimizer must be one with layer-wise rates; received optimizer='sgd"):
        fitted("sgd", [LayerwiseTensorBoard(tmp_path)])
    with pytest.raises(ValueError, match=r"patterns that each match one of the 4 tensors' paths.*'c/kernel'"):
        fitted(paper(lb.CLARS, 0.1), [LayerwiseProgress(tensors=["c/kernel"])])


def test_executions_of_several_steps_are_counted_in_updates(tmp_path):
    model = fitted(paper(lb.CLARS, 0.1), epochs=0)
    model.compile(paper(lb.CLARS, 0.1), MEAN_SQUARES, steps_per_execution=2, jit_compile=ON_JAX)
    model.fit(*data(), batch_size=2, epochs=2, verbose=0, callbacks=[LayerwiseRateRecorder(tmp_path / "rates.csv", 4)])
    # Executions end at updates 2, 4, 6 and 8, 10, 12; the first update and the multiples of 4 lie in these.
    assert sorted({update for update, *_ in read_layerwise_values(tmp_path / "rates.csv")}) == [2, 4, 8, 12]


def towers():
    """Two towers that one function builds: their layers share a name, and their variables a path."""

    def tower():
        inputs = keras.Input((3,))
        return keras.Model(inputs, keras.layers.Dense(2, name="fc")(inputs))

    inputs = [keras.Input((3,)), keras.Input((3,))]
    joined = keras.layers.Concatenate()([tower()(x) for x in inputs])
    return keras.Model(inputs, keras.layers.Dense(1, name="top")(joined))


def test_tensors_of_one_path_are_told_apart_everywhere(tmp_path):
    model = lb.LargeBatchModel(towers())
    model.compile(paper(lb.CLARS, 0.1), "mse", jit_compile=ON_JAX)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(8, 3)).astype("float32") for _ in range(2)]
    callbacks = [
        LayerwiseRateRecorder(tmp_path / "rates.csv", 1),
        LayerwiseProgress(["rate"], tensors=["fc/kernel"], every=1),
        LayerwiseTensorBoard(tmp_path, every=1),
    ]
    history = model.fit(x, np.ones((8, 1)), batch_size=8, verbose=0, callbacks=callbacks).history
    values = layerwise_values(model)
    assert list(values) == ["fc/kernel", "fc/bias", "fc/kernel#2", "fc/bias#2", "top/kernel", "top/bias"]
    kernels = [v for v in model.trainable_variables if v.path == "fc/kernel"]
    for path, kernel in zip(("fc/kernel", "fc/kernel#2"), kernels, strict=True):
        np.testing.assert_allclose(values[path].weight_norm, np.linalg.norm(kernel.numpy()), rtol=1e-6)
        assert history[f"rate/{path}"] == [values[path].rate]
        assert scalars(tmp_path)[f"rate/{path}", 1] == pytest.approx(values[path].rate)
    assert [path for _, path, _ in read_layerwise_values(tmp_path / "rates.csv")] == list(values)
    assert read_rate_table(tmp_path / "rates.csv")[1] == ["fc/kernel", "fc/kernel#2", "top/kernel"]


def test_event_files_go_to_the_home_directory_or_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LayerwiseTensorBoard("~/logs").log_dir == str(tmp_path / "logs")
    # TensorFlow writes there itself; a pathlib.Path would make a local directory gs: of it.
    assert LayerwiseTensorBoard("gs://bucket/logs").log_dir == "gs://bucket/logs"
