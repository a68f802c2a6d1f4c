"""Layer rules for Model Garden's own layers with variables: importing this package registers them with `TF_KERAS`."""

from tf_largebatch.model_garden.rules import text, vision  # noqa: F401  (register rules)
