"""The command line with a model that compiles quickly: a process of the tests of several workers.

tests/dying_checkpoint.py says when it kills itself.
"""

from __future__ import annotations

import pathlib
import sys

from absl import app

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from dying_checkpoint import DyingCheckpoint
from train_runs import tiny_network

from tf_largebatch import models, train
from tf_largebatch.train import execute

if __name__ == "__main__":
    models.NETWORKS["tiny"] = tiny_network
    execute.RunCheckpoint = DyingCheckpoint
    train.define_flags()
    app.run(train.main)
