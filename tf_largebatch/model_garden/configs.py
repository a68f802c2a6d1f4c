"""Config dataclasses of the Model Garden plug-in: what a YAML file or `--params_override` may say.

Each extends the class of the host of the same role and changes none of the host's. Fields that are None are filled in
after all overrides from the final global batch size (`recipe.py`); a value given by the user stays.
"""

from __future__ import annotations

import dataclasses

from official.core import config_definitions as cfg
from official.modeling import hyperparams, optimization
from official.vision.configs import backbones, common
from official.vision.configs import image_classification as host

from tf_largebatch.model_garden import checks, recipe, refusals

Excluded = list[str] | str | None


@dataclasses.dataclass
class LayerwiseConfig(optimization.BaseOptimizerConfig):
    """What `clars` and `lars_lb` share: the arguments of the classes in `tf_largebatch.tf_keras.optimizers`.

    Attributes:
        momentum: momentum, at least 0 and below 1.
        eta: trust coefficient, above 0.
        weight_decay_rate: L2 weight decay inside the gradient, 0 or more.
        nesterov: whether to use Nesterov momentum.
        classic_momentum: whether the learning rate goes inside the velocity.
        epsilon: added to the gradient norm.
        max_rate: cap on the layer-wise rate, or null.
        exclude_from_layer_adaptation: patterns on variable names that keep the plain learning rate; null for tensors
            of fewer than two dimensions, [] for none.
        exclude_from_weight_decay: variables without weight decay, said in the same way, with the same default.
    """

    momentum: float = 0.9
    eta: float = 0.001
    weight_decay_rate: float = 0.0
    nesterov: bool = False
    classic_momentum: bool = True
    epsilon: float = 1e-6
    max_rate: float | None = None
    exclude_from_layer_adaptation: Excluded = None
    exclude_from_weight_decay: Excluded = None


@dataclasses.dataclass
class LARSConfig(LayerwiseConfig):
    """Optimizer type `lars_lb`; the host's own is `lars`."""

    name: str = "LARS"


@dataclasses.dataclass
class CLARSConfig(LayerwiseConfig):
    """Optimizer type `clars`. How the norms are measured is said under `task.gradient_norms`."""

    name: str = "CLARS"
    eta: float = 0.01


@dataclasses.dataclass
class OptimizerConfig(optimization.OptimizerConfig):
    """The host's optimizers, `clars` and `lars_lb`."""

    clars: CLARSConfig = dataclasses.field(default_factory=CLARSConfig)
    lars_lb: LARSConfig = dataclasses.field(default_factory=LARSConfig)


@dataclasses.dataclass
class OptimizationConfig(optimization.OptimizationConfig):
    """Optimizer, learning rate, warmup and moving average."""

    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)


@dataclasses.dataclass
class TrainerConfig(cfg.TrainerConfig):
    """The host's, with step counts that derive from the batch size while they are null.

    Attributes:
        train_steps: null for `recipe.epochs` epochs.
        steps_per_loop: null for an epoch; likewise the three intervals.
        validation_steps: null for as many whole batches as `recipe.validation_examples` hold; -1 for the whole set.
    """

    optimizer_config: OptimizationConfig = dataclasses.field(default_factory=OptimizationConfig)
    train_steps: int | None = None
    steps_per_loop: int | None = None
    summary_interval: int | None = None
    checkpoint_interval: int | None = None
    validation_interval: int | None = None
    validation_steps: int | None = None


@dataclasses.dataclass
class DenseNet(hyperparams.Config):
    """DenseNet-BC.

    Attributes:
        model_id: 121, 169 or 201.
        growth_rate: channels that each layer adds.
        block_repeats: layers of each dense block in place of those of `model_id`, for smaller networks.
    """

    model_id: int = 121
    growth_rate: int = 32
    block_repeats: list[int] | None = None


@dataclasses.dataclass
class Backbone(backbones.Backbone):
    """The host's backbones and `densenet`."""

    densenet: DenseNet = dataclasses.field(default_factory=DenseNet)


@dataclasses.dataclass
class Model(host.ImageClassificationModel):
    """The host's classifier with a backbone of this plug-in."""

    backbone: Backbone = dataclasses.field(
        default_factory=lambda: Backbone(type="resnet", resnet=backbones.ResNet(model_id=50))
    )


@dataclasses.dataclass
class GradientNorms(hyperparams.Config):
    """How the norms are measured which the optimizer `clars` divides by; other optimizers ignore it.

    Attributes:
        mode: "exact": every example of the batch. "sampled": `norm_examples` of each replica's share. "replica": no
            examples, but the norm of each replica's gradient; with one replica that is LARS.
        norm_examples: with "sampled", how many, from 1 to the replica's batch.
        allow_generic: whether layers without a rule are measured by differentiating them alone, example by example, at
            two to three times their own cost, instead of being refused. Every backbone of the host has rules.
    """

    mode: str = "exact"
    norm_examples: int | None = None
    allow_generic: bool = False


@dataclasses.dataclass
class ConAdv(hyperparams.Config):
    """Concurrent adversarial learning, arXiv 2106.00221; the arguments of `tf_largebatch.ConAdvModel`.

    Attributes:
        enabled: whether each batch is trained on together with its adversarial copies.
        epsilon: radius of the ball around each image, in pixels of 255.
        step_size: length of an attack step in pixels of 255; null for `epsilon / num_steps`.
        num_steps: attack steps.
        staleness: tau: the copies trained on at step t were made with the weights of step t - tau, concurrently with
            the training step before; 0 makes them within the step (DisAdv).
        targeted: whether the attack descends the loss of a random wrong class; else it ascends the true one's.
        random_start: probability of a random point of the ball as starting point.
        norm: "linf" or "l2".
        attack: "pgd", or "noise" for a random point of the ball.
        adversarial_weight: weight of the adversarial images' loss beside the clean and augmented images' 1.
        augment: the view of a third stream with batch norms of its own, which the input pipeline makes, for example
            `{type: autoaug}`; null for none.
        value_range: one [lower, upper] pair per channel, flat (6 numbers for 3 channels), of valid inputs; null for
            what the host's standardisation makes of 0 to 255.
        seed: of the targets and starting points.
    """

    enabled: bool = False
    epsilon: float = 4.0
    step_size: float | None = None
    num_steps: int = 1
    staleness: int = 1
    targeted: bool = True
    random_start: float = 0.8
    norm: str = "linf"
    attack: str = "pgd"
    adversarial_weight: float = 1.0
    augment: common.Augmentation | None = None
    value_range: list[float] | None = None
    seed: int = 0


@dataclasses.dataclass
class LargeBatchTask(host.ImageClassificationTask):
    """The host's image classification with measured gradient norms and concurrent adversarial learning.

    Attributes:
        model: network, input size and number of classes.
        gradient_norms: how the norms for the optimizer `clars` are measured.
        conadv: concurrent adversarial learning.
        micro_batch_size: splits each replica's batch into micro-batches of this many images, worked off one after the
            other within the step, attacks too; null for no split. Memory is that of one micro-batch. Gradient and norms
            are those of the whole batch, but that batch norms take their statistics from one micro-batch at a time.
    """

    model: Model = dataclasses.field(default_factory=Model)
    gradient_norms: GradientNorms = dataclasses.field(default_factory=GradientNorms)
    conadv: ConAdv = dataclasses.field(default_factory=ConAdv)
    micro_batch_size: int | None = None


@dataclasses.dataclass
class Recipe(hyperparams.Config):
    """From which learning rate, warmup and step counts derive once the batch size is final.

    Attributes:
        train_examples: images of an epoch.
        validation_examples: images to evaluate.
        epochs: epochs of the training, warmup included.
        base_learning_rate: learning rate at `base_batch_size`; the peak is proportional to the batch size.
        base_batch_size: see there.
        warmup_epochs: epochs of linear warmup; null with a table, which knows.
        table: "conadv" for the authors' peaks and warmups by batch size in place of the linear rule.
    """

    train_examples: int = host.IMAGENET_TRAIN_EXAMPLES
    validation_examples: int = host.IMAGENET_VAL_EXAMPLES
    epochs: float = 90.0
    base_learning_rate: float = 0.128
    base_batch_size: int = 256
    warmup_epochs: float | None = None
    table: str | None = None


@dataclasses.dataclass
class ExperimentConfig(cfg.ExperimentConfig):
    """An experiment whose null fields are filled in by `validate`, which the host calls after all overrides."""

    task: LargeBatchTask = dataclasses.field(default_factory=LargeBatchTask)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    def override(self, override_params: dict | hyperparams.Config, is_strict: bool = True) -> None:
        """As the host's; a field that does not exist is named with its whole path.

        Raises:
            KeyError: if `is_strict` and there is no such field.
        """
        if is_strict:
            refusals.refuse_unknown_fields(self, override_params)
        super().override(override_params, is_strict)

    def validate(self) -> None:
        """Checks every field and derives the null ones from the final batch size; may be called again.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        checks.check_experiment(self)
        super().validate()
        recipe.derive(self)
        checks.check_derived(self)
