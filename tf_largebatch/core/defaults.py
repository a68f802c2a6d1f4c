"""The defaults of CLARS, LARS and their schedule, once for both Keras worlds, the command line and the documentation.

They suit runs of some hundred to some thousand updates. The studies behind them are in `results/README.md`. The papers'
settings, for 90 epochs, are other ones: see `docs/choosing.md` and `official_configs/`.

To change a number, change it here: signatures, the rows of `train/optimizers.py`, Model Garden's fields and the
documentation's table read this file.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerwiseDefaults:
    """Defaults of a layer-wise optimizer.

    Attributes:
        learning_rate: A constant learning rate, for every batch size.
        eta: Trust coefficient.
        max_rate: Cap on the layer-wise rate, or None for none.
        unadapted_rate_factor: Rate of the tensors without layer adaptation (biases, batch normalization).
    """

    learning_rate: float
    eta: float
    max_rate: float | None
    unadapted_rate_factor: float


@dataclasses.dataclass(frozen=True)
class CLARSDefaults(LayerwiseDefaults):
    """Defaults of CLARS.

    Attributes:
        max_agreement: Cap on the agreement of the examples' gradients, or None for none.
    """

    max_agreement: float | None


# CLARS's eta is near the best points of the equal searches (results/fashion_mnist, results/why/rates). max_agreement is
# where this departs from the paper: without it a step is eta * agreement * ||w|| long, and networks without batch
# normalization, whose examples agree, do not train at this eta, nor LeNet-5 at half of it. With 0.05 CLARS and the
# schedule is within 0.7 points of its own searches at nine of ten settings, with and without batch normalization; with
# 0.1 LeNet-5 loses 5 to 22 points (results/defaults/agreement, five seeds). Under it a cap of 3 on the rates, which
# bounds them as the training loss vanishes, costs nothing; LARS's is 1. Tensors without adaptation train as well at any
# small rate (results/why/rates). No value depends on the batch size. The constant learning rates are below the
# schedule's peak: a rate that never falls keeps its noise (results/defaults).
CLARS = CLARSDefaults(learning_rate=0.3, eta=0.5, max_rate=3.0, unadapted_rate_factor=0.2, max_agreement=0.05)
LARS = LayerwiseDefaults(learning_rate=0.2, eta=0.03, max_rate=1.0, unadapted_rate_factor=0.2)

# The schedule: a peak for every batch size, and a straight line to nearly 0 over the whole run (results/why/schedules).
PEAK_LEARNING_RATE = 1.0
POWER = 1.0
END_LEARNING_RATE = 1e-4

# The recipe's weight decay. The classes' own default is 0, as in Keras.
WEIGHT_DECAY_RATE = 5e-4
