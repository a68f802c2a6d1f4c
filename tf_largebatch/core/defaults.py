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


# eta is near the best points of the equal searches (results/fashion_mnist, results/why/rates). With a cap of 1 more of
# the points train (results/why/cap), and rates stay bounded as the training loss vanishes. Tensors without adaptation
# train as well at any small rate (results/why/rates). None of these depends on the batch size. The constant learning
# rates are below the schedule's peak: a rate that never falls keeps its noise. On Fashion-MNIST the mean of CLARS's
# runs is within three points of Adam at every batch size from 0.3 on (0.2 is 3.3 behind at 4,096), LARS's from 0.2 on.
# 0.5 is better there, but networks without batch normalization leave their best accuracy at 0.5 and a batch of 128
# (results/defaults). CLARS's rate is the paper's: max_agreement, with which a larger eta and cap are better at large
# batches (results/defaults/agreement), is left to the user.
CLARS = CLARSDefaults(learning_rate=0.3, eta=0.25, max_rate=1.0, unadapted_rate_factor=0.2, max_agreement=None)
LARS = LayerwiseDefaults(learning_rate=0.2, eta=0.03, max_rate=1.0, unadapted_rate_factor=0.2)

# The schedule: a peak for every batch size, and a straight line to nearly 0 over the whole run (results/why/schedules).
PEAK_LEARNING_RATE = 1.0
POWER = 1.0
END_LEARNING_RATE = 1e-4

# The recipe's weight decay. The classes' own default is 0, as in Keras.
WEIGHT_DECAY_RATE = 5e-4
