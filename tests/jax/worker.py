"""The command line with a model that compiles quickly: a process of the tests of several workers.

tests/dying_checkpoint.py says when it kills itself.
"""

from __future__ import annotations

from absl import app
from dying_checkpoint import DyingCheckpoint
from train_runs import linear_network

from tf_largebatch import models, train
from tf_largebatch.train import command_line, execute

if __name__ == "__main__":
    models.NETWORKS["linear"] = linear_network
    execute.RunCheckpoint = DyingCheckpoint
    train.define_flags()
    app.run(command_line.quiet_main)
