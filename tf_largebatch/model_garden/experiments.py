"""The experiments of this plug-in; `import tf_largebatch.model_garden.registry_imports` registers them.

Those of ImageNet are the two papers' settings at batch 4,096; `official_configs/` has the larger batches. Those of
CIFAR-10, at batch 512, have the optimizer's defaults.
Learning rate, warmup and step counts are null here and are derived from the final batch size (`recipe.py`).

Sources: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576 (CLARS); Liu, Chen, Cheng, Hsieh,
You, "Concurrent Adversarial Learning for Large-Batch Training", arXiv 2106.00221 (ConAdv). The values are those of
their released code.
"""

from __future__ import annotations

import os
from typing import Any

from official.core import exp_factory
from official.vision.configs import backbones, common
from official.vision.configs import image_classification as model_garden

from tf_largebatch.core import defaults
from tf_largebatch.model_garden import configs

BATCH_SIZE = 4096
CIFAR10_BATCH_SIZE = 512

# The CLARS authors' ImageNet recipe: 0.128 for each 256 images, polynomial decay of power 2 to 1e-4, 90 epochs.
CLARS_RECIPE = {"epochs": 90.0, "base_learning_rate": 0.128, "base_batch_size": 256}
CLARS_DECAY = {"power": 2.0, "end_learning_rate": 1e-4}
# The authors exclude batch norms and biases from layer-wise rates and decay every tensor.
_OPTIMIZER = {
    "momentum": 0.9,
    "weight_decay_rate": 2e-4,
    "classic_momentum": False,
    "max_rate": 0.1,
    "unadapted_rate_factor": 1.0,
    "exclude_from_weight_decay": [],
}
CLARS_OPTIMIZER = {**_OPTIMIZER, "eta": 0.01, "max_agreement": None}
LARS_OPTIMIZER = {**_OPTIMIZER, "eta": 0.001}
# The ConAdv authors' LARS: no decay of batch norms and biases; peak and warmup from their table.
CONADV_OPTIMIZER = {
    "momentum": 0.92,
    "eta": 0.001,
    "weight_decay_rate": 5e-5,
    "classic_momentum": True,
    "max_rate": None,
    "unadapted_rate_factor": 1.0,
}
CONADV_RECIPE = {"epochs": 100.0, "table": "conadv"}
CONADV_DECAY = {"power": 1.6, "end_learning_rate": 1e-4}
CONADV_ATTACK: dict[str, Any] = {
    "enabled": True,
    "epsilon": 4.0,
    "num_steps": 1,
    "staleness": 1,
    "targeted": True,
    "random_start": 0.8,
}


def _resnet(model_id: int = 50, **kwargs: Any) -> configs.Backbone:
    return configs.Backbone(type="resnet", resnet=backbones.ResNet(model_id=model_id, **kwargs))


def _optimization(optimizer: str, arguments: dict, decay: dict) -> configs.OptimizationConfig:
    return configs.OptimizationConfig(
        {
            "optimizer": {"type": optimizer, optimizer: arguments},
            "learning_rate": {"type": "polynomial", "polynomial": decay},
        }
    )


def _imagenet(
    backbone: configs.Backbone,
    optimization: configs.OptimizationConfig,
    recipe: dict,
    *,
    conadv: dict | None = None,
    image_size: int = 224,
    norm: tuple[float, float] = (0.9, 1e-5),
    activation: str = "relu",
    dropout_rate: float = 0.0,
    label_smoothing: float = 0.0,
) -> configs.ExperimentConfig:
    """Returns an experiment on ImageNet-format TFRecords. The optimizer decays the weights; there is no regularizer."""

    def data(pattern: str, is_training: bool) -> model_garden.DataConfig:
        return model_garden.DataConfig(
            input_path=os.path.join(model_garden.IMAGENET_INPUT_PATH_BASE, pattern),
            is_training=is_training,
            global_batch_size=BATCH_SIZE,
        )

    return configs.ExperimentConfig(
        task=configs.LargeBatchTask(
            model=configs.Model(
                num_classes=1001,
                input_size=[image_size, image_size, 3],
                backbone=backbone,
                dropout_rate=dropout_rate,
                norm_activation=common.NormActivation(
                    activation=activation, norm_momentum=norm[0], norm_epsilon=norm[1], use_sync_bn=False
                ),
            ),
            losses=model_garden.Losses(l2_weight_decay=0.0, label_smoothing=label_smoothing),
            train_data=data("train*", True),
            validation_data=data("valid*", False),
            conadv=configs.ConAdv(**(conadv or {})),
        ),
        trainer=configs.TrainerConfig(optimizer_config=optimization),
        recipe=configs.Recipe(**recipe),
        restrictions=["task.train_data.is_training != None", "task.validation_data.is_training != None"],
    )


@exp_factory.register_config_factory("clars_resnet_imagenet")
def clars_resnet_imagenet() -> configs.ExperimentConfig:
    """ResNet-50 with CLARS, without warmup."""
    return _imagenet(_resnet(), _optimization("clars", CLARS_OPTIMIZER, CLARS_DECAY), CLARS_RECIPE)


@exp_factory.register_config_factory("clars_densenet_imagenet")
def clars_densenet_imagenet() -> configs.ExperimentConfig:
    """DenseNet-121 with CLARS, without warmup."""
    backbone = configs.Backbone(type="densenet", densenet=configs.DenseNet(model_id=121))
    return _imagenet(backbone, _optimization("clars", CLARS_OPTIMIZER, CLARS_DECAY), CLARS_RECIPE)


@exp_factory.register_config_factory("clars_mobilenet_imagenet")
def clars_mobilenet_imagenet() -> configs.ExperimentConfig:
    """MobileNetV2 with CLARS, without warmup; batch norms and dropout as in Model Garden's mobilenet_imagenet."""
    backbone = configs.Backbone(type="mobilenet", mobilenet=backbones.MobileNet(model_id="MobileNetV2"))
    optimization = _optimization("clars", CLARS_OPTIMIZER, CLARS_DECAY)
    return _imagenet(backbone, optimization, CLARS_RECIPE, norm=(0.997, 1e-3), dropout_rate=0.2)


@exp_factory.register_config_factory("lars_resnet_imagenet")
def lars_resnet_imagenet() -> configs.ExperimentConfig:
    """ResNet-50 with LARS and five epochs of warmup, the baseline of clars_resnet_imagenet."""
    optimization = _optimization("lars_lb", LARS_OPTIMIZER, CLARS_DECAY)
    return _imagenet(_resnet(), optimization, {**CLARS_RECIPE, "warmup_epochs": 5.0})


@exp_factory.register_config_factory("conadv_resnet_imagenet")
def conadv_resnet_imagenet() -> configs.ExperimentConfig:
    """ResNet-50 with LARS and concurrent adversarial learning."""
    optimization = _optimization("lars_lb", CONADV_OPTIMIZER, CONADV_DECAY)
    return _imagenet(_resnet(), optimization, CONADV_RECIPE, conadv=CONADV_ATTACK, label_smoothing=0.1)


@exp_factory.register_config_factory("conadv_efficientnet_imagenet")
def conadv_efficientnet_imagenet() -> configs.ExperimentConfig:
    """EfficientNet-B2 at 260 px with LARS and concurrent adversarial learning."""
    backbone = configs.Backbone(type="efficientnet", efficientnet=backbones.EfficientNet(model_id="b2", se_ratio=0.25))
    return _imagenet(
        backbone,
        _optimization("lars_lb", CONADV_OPTIMIZER, CONADV_DECAY),
        CONADV_RECIPE,
        conadv=CONADV_ATTACK,
        image_size=260,
        norm=(0.9, 1e-3),
        activation="swish",
        dropout_rate=0.3,
        label_smoothing=0.1,
    )


def _cifar10(optimization: configs.OptimizationConfig, recipe: dict, conadv: dict | None) -> configs.ExperimentConfig:
    """ResNet-18 at a quarter of its width on CIFAR-10, read by tensorflow_datasets; two epochs, for a CPU."""

    def data(split: str, is_training: bool, batch_size: int) -> model_garden.DataConfig:
        return model_garden.DataConfig(
            tfds_name="cifar10",
            tfds_split=split,
            is_training=is_training,
            global_batch_size=batch_size,
            cycle_length=1,  # the one file would otherwise be read ten times side by side
            aug_crop=False,  # Inception's crop is too hard for 32 px and few epochs
        )

    params = _imagenet(_resnet(18, depth_multiplier=0.25), optimization, recipe, conadv=conadv, image_size=32)
    task = params.task
    task.model.num_classes = 10
    task.model.norm_activation.norm_momentum = 0.9
    task.train_data = data("train", True, CIFAR10_BATCH_SIZE)
    task.validation_data = data("test", False, 1000)
    return params


@exp_factory.register_config_factory("clars_resnet_cifar10")
def clars_resnet_cifar10() -> configs.ExperimentConfig:
    """Returns a small ResNet-18 on CIFAR-10 with CLARS by the recipe of `docs/choosing.md`, without warmup."""
    recipe: dict[str, Any] = {"train_examples": 50000, "validation_examples": 10000, "epochs": 2.0}
    recipe.update(base_learning_rate=defaults.PEAK_LEARNING_RATE, base_batch_size=None)
    decay = {"power": defaults.POWER, "end_learning_rate": defaults.END_LEARNING_RATE}
    optimization = _optimization("clars", {"weight_decay_rate": defaults.WEIGHT_DECAY_RATE}, decay)
    return _cifar10(optimization, recipe, None)


@exp_factory.register_config_factory("conadv_resnet_cifar10")
def conadv_resnet_cifar10() -> configs.ExperimentConfig:
    """Returns a small ResNet-18 on CIFAR-10 with CLARS and concurrent adversarial learning."""
    params = clars_resnet_cifar10()
    params.task.conadv = configs.ConAdv(**CONADV_ATTACK)
    return params
