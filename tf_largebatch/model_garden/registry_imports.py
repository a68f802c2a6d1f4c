"""Importing this module registers Model Garden's own experiments, and those of this plug-in beside them."""

from official.modeling import optimization
from official.vision import registry_imports  # noqa: F401  (it registers)

from tf_largebatch.model_garden import experiments, rules, task  # noqa: F401  (it registers)
from tf_largebatch.model_garden.backbones import densenet  # noqa: F401  (it registers)
from tf_largebatch.tf_keras.optimizers import CLARS, LARS

for name, optimizer in {"clars": CLARS, "lars_lb": LARS}.items():
    optimization.register_optimizer_cls(name, optimizer)
