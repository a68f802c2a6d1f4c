"""CLARS and LARS as the papers print them: no caps, and the plain learning rate for tensors without adaptation.

Tests of norms, rates and updates use these. The norms decide the rates then, where a cap would hide them, and a change
of the classes' defaults breaks none of these tests.
"""

from __future__ import annotations


def paper(optimizer_class, learning_rate=0.01, **arguments):
    """An optimizer, of either Keras, with the papers' arguments in place of the defaults.

    Args:
        optimizer_class: CLARS or LARS, or a subclass of one of them.
        learning_rate: The learning rate.
        **arguments: What differs from the papers.
    """
    is_clars = any(base.__name__ == "CLARS" for base in optimizer_class.__mro__)
    own = {"eta": 0.01, "max_agreement": None} if is_clars else {"eta": 0.001}
    return optimizer_class(learning_rate, **{**own, "max_rate": None, "unadapted_rate_factor": 1.0, **arguments})
