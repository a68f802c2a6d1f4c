"""Ten steps against the NumPy transcription of the equations."""

from __future__ import annotations

import numpy as np
import pytest
from layerwise_cases import SHAPES, apply_all, gradients, norms, variables
from paper_settings import paper
from reference import Reference, assert_follows, references

from tf_largebatch.optimizers import CLARS, LARS

pytestmark = pytest.mark.each_value

STEPS = 10
# What is excluded, as the argument and as paths.
EXCLUSIONS = {
    "default": (None, {"stem/bias"}),
    "nothing": ([], set()),
    "pattern": ("^head/", {"head/kernel"}),
}


def difference(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# Decay, cap, exclusion from adaptation, exclusion from decay, rate without adaptation; for CLARS the exponent of its
# norms and the cap of the agreement, which binds in some steps.
SETTINGS = [
    (0.0, None, "default", "default", 1.0, 1.0, None),
    (0.0, None, "default", "default", 1.0, 1.0, 0.75),
    (0.05, None, "default", "nothing", 0.25, 0.0, 0.5),
    (0.05, 0.03, "nothing", "pattern", 1.0, 0.75, None),
    (0.05, 0.03, "pattern", "default", 2.0, 0.25, 0.9),
]


@pytest.mark.parametrize("cls", [CLARS, LARS])
@pytest.mark.parametrize("classic", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay, max_rate, adaptation, decaying, unadapted, exponent, agreement", SETTINGS)
def test_ten_steps(cls, classic, nesterov, decay, max_rate, adaptation, decaying, unadapted, exponent, agreement):
    arguments = {
        "learning_rate": 0.5,
        "momentum": 0.75,
        "eta": 0.125,
        "weight_decay_rate": decay,
        "nesterov": nesterov,
        "classic_momentum": classic,
        "epsilon": 0.25,
        "max_rate": max_rate,
        "unadapted_rate_factor": unadapted,
    }
    if cls is CLARS:
        arguments |= {"norm_exponent": exponent, "max_agreement": agreement}
    not_adapted, not_decayed = EXCLUSIONS[adaptation], EXCLUSIONS[decaying]
    exclusions = {"exclude_from_layer_adaptation": not_adapted[0], "exclude_from_weight_decay": not_decayed[0]}
    optimizer, trained = cls(**arguments, **exclusions), variables()
    started = {path: variable.numpy() for path, variable in zip(SHAPES, trained, strict=True)}
    expected = references(arguments, started, not_adapted[1], not_decayed[1])
    all_gradients, all_norms = gradients(STEPS), norms(STEPS) if cls is CLARS else None
    found = apply_all(optimizer, all_gradients, trained, all_norms)
    assert_follows(optimizer, found, expected, all_gradients, all_norms)


def test_the_learning_rate_of_each_step_counts(schedule=(0.5, 0.25, 0.0, 1.0)):
    """The forms of momentum differ only here, so the grid's constant rate would not tell them apart."""
    for classic in (True, False):
        optimizer = paper(LARS, 1.0, eta=0.125, classic_momentum=classic)
        trained = variables()
        reference = Reference(trained[0].numpy(), lr=1.0, eta=0.125, classic=classic)
        for learning_rate, some in zip(schedule, gradients(len(schedule)), strict=True):
            optimizer.learning_rate = learning_rate
            apply_all(optimizer, [some], trained)
            reference.lr = learning_rate
            reference.step(some[0])
        assert difference(trained[0].numpy(), reference.w) < 1e-6
