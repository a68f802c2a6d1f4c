"""LARS and CLARS in NumPy float64, one line of code for each line of the equations.

s_k     mean of the per-example gradient norms (CLARS), ||g_k|| (LARS)
d_k     = s_k; under CLARS's norm_exponent q, ||gradient||^(1-q) * s_k^q; at least ||gradient|| / max_agreement
rate_k  = min(eta * ||w_k|| / (d_k + epsilon), max_rate); unadapted_rate_factor for excluded tensors;
          0 where d_k = 0; else min(1, max_rate) where ||w_k|| = 0
g_k     = gradient + lambda * w_k; under popular momentum LARS's norm is 0 where the gradient is

classic momentum:   v <- beta * v + lr * rate_k * g_k ;   w <- w - v
popular momentum:   v <- beta * v + g_k ;                 w <- w - lr * rate_k * v
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest


@dataclasses.dataclass
class Reference:
    """One tensor under LARS (`s=None` in `step`) or CLARS."""

    w: np.ndarray
    lr: float
    eta: float
    beta: float = 0.9
    decay: float = 0.0
    nesterov: bool = False
    classic: bool = True
    epsilon: float = 1e-6
    max_rate: float | None = None
    unadapted: float = 1.0
    exponent: float = 1.0
    max_agreement: float | None = None
    adapted: bool = True
    decayed: bool = True

    def __post_init__(self):
        self.w = np.asarray(self.w, np.float64)
        self.v = np.zeros_like(self.w)
        self.rate = self.norm = None

    def step(self, gradient, s=None):
        g = np.asarray(gradient, np.float64)
        if self.decayed:
            g = g + self.decay * self.w
        weight_norm = np.sqrt((self.w**2).sum())
        self.norm = np.sqrt((g**2).sum()) if s is None else s
        if s is None and not self.classic and self.beta and not np.any(gradient):
            self.norm = 0.0
        self.rate = self.unadapted
        divisor = self.norm
        if s is not None and self.exponent != 1:
            divisor = np.sqrt((np.asarray(gradient, np.float64) ** 2).sum()) ** (1 - self.exponent) * s**self.exponent
        if s is not None and self.max_agreement is not None:
            divisor = max(divisor, np.sqrt((np.asarray(gradient, np.float64) ** 2).sum()) / self.max_agreement)
        if self.adapted:
            cap = np.inf if self.max_rate is None else self.max_rate
            if divisor == 0:
                self.rate = 0.0
            elif weight_norm == 0:
                self.rate = min(1.0, cap)
            else:
                self.rate = min(self.eta * weight_norm / (divisor + self.epsilon), cap)
        if self.classic:
            self.v = self.beta * self.v + self.lr * self.rate * g
            update = self.beta * self.v + self.lr * self.rate * g if self.nesterov else self.v
        else:
            self.v = self.beta * self.v + g
            update = self.lr * self.rate * (g + self.beta * self.v if self.nesterov else self.v)
        self.w = self.w - update


def references(arguments, started, not_adapted=(), not_decayed=()):
    """`{path: reference}` for an optimizer made with these arguments, from `{path: weights}`."""
    names = {"lr": "learning_rate", "eta": "eta", "beta": "momentum", "decay": "weight_decay_rate"}
    names |= {"nesterov": "nesterov", "classic": "classic_momentum", "epsilon": "epsilon", "max_rate": "max_rate"}
    names |= {"unadapted": "unadapted_rate_factor", "exponent": "norm_exponent", "max_agreement": "max_agreement"}
    settings = {name: arguments[argument] for name, argument in names.items() if argument in arguments}
    return {
        path: Reference(w, **settings, adapted=path not in not_adapted, decayed=path not in not_decayed)
        for path, w in started.items()
    }


def assert_follows(optimizer, found, expected, all_gradients, all_norms=None):
    """Weights, rates and norms of an optimizer after these steps are the references', which take the steps here."""
    for step, some in enumerate(all_gradients):
        handed = [None] * len(some) if all_norms is None else all_norms[step]
        handed = handed.values() if isinstance(handed, dict) else handed
        for reference, gradient, norm in zip(expected.values(), some, handed, strict=True):
            reference.step(gradient, norm)
    rates, measured = optimizer.layerwise_rates(), optimizer.gradient_norms()
    for (path, reference), actual in zip(expected.items(), found, strict=True):
        # Ten float32 steps: the roundings of 6e-8 add up to well below 1e-6.
        assert np.linalg.norm(actual - reference.w) < 1e-6 * np.linalg.norm(reference.w), path
        assert rates[path] == pytest.approx(reference.rate, rel=1e-6), path
        if reference.adapted:
            assert measured[path] == pytest.approx(reference.norm, rel=1e-6), path
