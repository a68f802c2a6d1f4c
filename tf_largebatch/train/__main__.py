"""`python -m tf_largebatch.train`."""

from absl import app

from tf_largebatch.train.command_line import _quiet_main, define_flags

define_flags()
app.run(_quiet_main)
