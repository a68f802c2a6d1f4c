"""The table of optimizers: defaults, weight decay, and that an optimizer takes one file and one row."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from train_runs import add_networks, command_line, rows_of

from tf_largebatch import LARS
from tf_largebatch.conadv.auxiliary_batch_norm import variables_without_decay
from tf_largebatch.core import defaults
from tf_largebatch.core.schedules import large_batch_schedule
from tf_largebatch.train import TrainConfig
from tf_largebatch.train.optimizers import (
    LAYERWISE_ARGUMENTS,
    OPTIMIZERS,
    Defaults,
    Optimizer,
    build_optimizer,
    build_schedule,
)
from tf_largebatch.train.prepare import prepare
from tf_largebatch.train.resolve import resolved


def optimizer_of(without_decay=(), **options):
    return build_optimizer(resolved(TrainConfig.from_flags(**options)).optimizer, 0.1, without_decay)


def assert_has(config, chosen):
    names = ("eta", "max_rate", "unadapted_rate_factor")
    assert [getattr(config, name) for name in names] == [getattr(chosen, name) for name in names]


def test_defaults_of_the_optimizers():
    digits, cifar10 = (resolved(TrainConfig.from_flags(dataset=name)).optimizer for name in ("digits", "cifar10"))
    for one in (digits, cifar10):
        assert (one.name, one.scaling, one.weight_decay_rate) == ("clars", "none", defaults.WEIGHT_DECAY_RATE)
        assert_has(one, defaults.CLARS)
    lars = resolved(TrainConfig.from_flags(optimizer="lars")).optimizer
    assert_has(lars, defaults.LARS)
    for batch_size in (128, 4096):
        found = build_schedule(cifar10, batch_size, 6, 12).get_config()
        assert found == large_batch_schedule(steps_per_epoch=12, epochs=6).get_config()
    adam = resolved(TrainConfig.from_flags(optimizer="Adam")).optimizer
    assert (adam.name, adam.momentum, adam.eta, adam.classic_momentum) == ("adam", None, None, None)


def test_an_infinite_cap_is_none():
    assert optimizer_of(max_rate=float("inf")).max_rate is None
    assert optimizer_of(max_agreement=float("inf")).max_agreement is None
    assert optimizer_of(max_agreement=0.5).max_agreement == 0.5


def test_exponent_and_rate_factor_reach_the_optimizer():
    clars = optimizer_of(norm_exponent=0.5, unadapted_rate_factor=2.0)
    assert (clars.norm_exponent, clars.unadapted_rate_factor) == (0.5, 2.0)
    assert optimizer_of(optimizer="lars", unadapted_rate_factor=0.5).unadapted_rate_factor == 0.5
    assert resolved(TrainConfig.from_flags()).optimizer.norm_exponent == 1.0


def test_clars_never_falls_back_to_the_norm_of_a_replicas_gradient():
    assert optimizer_of().get_config()["gradient_norms"] == "per_example"


def test_of_conadv_only_kernels_decay_with_any_optimizer(monkeypatch):
    """One update with zero gradients moves what decays, and nothing else; auxiliary batch norms included."""
    add_networks(monkeypatch)
    config = TrainConfig.from_flags(model="tiny", adversarial="conadv", augmented_stream="rand_augment")
    try:
        model = prepare(config.with_flags(optimizer="sgd")).model
    except ValueError as error:
        if "RandAugment takes them from Keras 3.15 on" not in str(error):
            raise
        pytest.skip(str(error))
    variables = model.trainable_variables
    model.optimizer.build(variables)
    assert [model.optimizer._use_weight_decay(v) for v in variables] == [len(v.shape) > 1 for v in variables]
    assert sum("gamma" in v.path for v in variables) == 3  # clean, adversarial, augmented
    for name, row in OPTIMIZERS.items():
        if not row.layerwise:
            optimizer = optimizer_of(variables_without_decay(model), optimizer=name, weight_decay_rate=0.5)
            optimizer.build(variables)
            assert optimizer.weight_decay == 0.5
            assert [optimizer._use_weight_decay(v) for v in variables] == [len(v.shape) > 1 for v in variables], name
    before = [np.asarray(v) for v in variables]
    for name in {"sgd", "adamw", "muon", "lars"} & set(OPTIMIZERS):  # Keras 3.12's Muon is left out
        optimizer = optimizer_of(variables_without_decay(model), optimizer=name, weight_decay_rate=0.5)
        optimizer.apply([np.zeros(v.shape, "float32") for v in variables], variables)
        for variable, old in zip(variables, before, strict=True):
            moved = not np.array_equal(variable, old)
            assert moved == (len(variable.shape) > 1), (name, variable.path)
            variable.assign(old)


@pytest.mark.skipif("muon" not in OPTIMIZERS, reason="Keras 3.12's Muon fails on TensorFlow")
def test_muon_decays_what_it_trains_by_adam_at_the_same_rate():
    optimizer = optimizer_of(optimizer="muon", weight_decay_rate=0.25)
    assert (optimizer.weight_decay, optimizer.adam_weight_decay) == (0.25, 0.25)


def test_an_optimizer_is_added_by_one_row(monkeypatch, tmp_path, capsys):
    class HalfLARS(LARS):
        """LARS with half the rate."""

        def __init__(self, learning_rate, eta=0.001, **kwargs):
            super().__init__(learning_rate, eta=eta / 2, **kwargs)

    row = Optimizer(HalfLARS, Defaults(0.1, "linear", 1e-4, eta=0.01), LAYERWISE_ARGUMENTS, layerwise=True)
    monkeypatch.setitem(OPTIMIZERS, "half_lars", row)
    add_networks(monkeypatch)
    flags = ["--optimizer=half_lars", "--model=linear", "--epochs=1", f"--output_dir={tmp_path / 'run'}"]
    assert command_line(*flags) == 0, capsys.readouterr().err
    rates = rows_of(tmp_path / "run" / "layerwise_rates.csv")
    assert {row["variable"].split("/")[-1] for row in rates} == {"kernel", "bias"}
    assert isinstance(optimizer_of(optimizer="half_lars"), keras.optimizers.Optimizer)
