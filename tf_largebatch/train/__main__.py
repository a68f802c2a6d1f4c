"""`python -m tf_largebatch.train`."""

from absl import app

from tf_largebatch.train.command_line import define_flags, quiet_main

define_flags()
app.run(quiet_main)
