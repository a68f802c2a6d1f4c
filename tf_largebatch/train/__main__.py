"""Trains an image classifier in Keras 3: python -m tf_largebatch.train [flags].

Without flags it trains on scikit-learn's digits with CLARS. Each flag is described below; docs/command_line.md says
what a run leaves in its directory.
"""

from absl import app, flags

from tf_largebatch.train import command_line

command_line.define_flags()
# So that --help lists them.
flags.adopt_module_key_flags(command_line)
app.run(command_line.quiet_main)
