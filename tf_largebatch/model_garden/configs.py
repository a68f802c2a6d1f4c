"""Config dataclasses of the Model Garden plug-in: what a YAML file or `--params_override` may set.

Each class extends Model Garden's class of the same role and changes nothing in it. Fields that are null are derived
from the final global batch size after all overrides (`recipe.py`); a value that the user gives stays.
"""

from __future__ import annotations

import dataclasses

from official.core import config_definitions as cfg
from official.modeling import hyperparams, optimization
from official.vision.configs import backbones, common
from official.vision.configs import image_classification as model_garden

from tf_largebatch.core import defaults
from tf_largebatch.model_garden import checks, recipe, refusals

Excluded = list[str] | str | None


@dataclasses.dataclass
class LayerwiseConfig(optimization.BaseOptimizerConfig):
    """The arguments that `clars` and `lars_lb` share, of the classes in `tf_largebatch.tf_keras.optimizers`.

    Attributes:
        momentum: Momentum, at least 0 and below 1.
        eta: Trust coefficient, above 0.
        weight_decay_rate: L2 weight decay inside the gradient, 0 or more.
        nesterov: Whether to use Nesterov momentum.
        classic_momentum: Whether the learning rate goes inside the velocity.
        epsilon: Added to the gradient norm.
        max_rate: Cap on the layer-wise rate, or null for none.
        unadapted_rate_factor: Rate of the tensors without layer adaptation; 1 is the plain learning rate.
        exclude_from_layer_adaptation: Patterns on the names of variables that keep the plain learning rate; null for
            tensors of fewer than two dimensions, [] for none.
        exclude_from_weight_decay: Patterns on the names of variables without weight decay, with the same default.
    """

    momentum: float = 0.9
    eta: float = defaults.LARS.eta
    weight_decay_rate: float = 0.0
    nesterov: bool = False
    classic_momentum: bool = True
    epsilon: float = 1e-6
    max_rate: float | None = defaults.LARS.max_rate
    unadapted_rate_factor: float = defaults.LARS.unadapted_rate_factor
    exclude_from_layer_adaptation: Excluded = None
    exclude_from_weight_decay: Excluded = None


@dataclasses.dataclass
class LARSConfig(LayerwiseConfig):
    """Optimizer type `lars_lb`. Model Garden's own LARS is `lars`."""

    name: str = "LARS"


@dataclasses.dataclass
class CLARSConfig(LayerwiseConfig):
    """Optimizer type `clars`. `task.gradient_norms` sets how its norms are measured.

    Attributes:
        norm_exponent: Exponent q of the measured norm s in the denominator ||g||^(1-q) s^q, from 0 to 1.
        max_agreement: Cap on ||g|| divided by that denominator, or null for none, as in the paper.
    """

    name: str = "CLARS"
    eta: float = defaults.CLARS.eta
    max_rate: float | None = defaults.CLARS.max_rate
    unadapted_rate_factor: float = defaults.CLARS.unadapted_rate_factor
    norm_exponent: float = 1.0
    max_agreement: float | None = defaults.CLARS.max_agreement


@dataclasses.dataclass
class OptimizerConfig(optimization.OptimizerConfig):
    """Model Garden's optimizers, `clars` and `lars_lb`."""

    clars: CLARSConfig = dataclasses.field(default_factory=CLARSConfig)
    lars_lb: LARSConfig = dataclasses.field(default_factory=LARSConfig)


@dataclasses.dataclass
class OptimizationConfig(optimization.OptimizationConfig):
    """Optimizer, learning rate, warmup and moving average."""

    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)


@dataclasses.dataclass
class TrainerConfig(cfg.TrainerConfig):
    """Model Garden's trainer, with step counts that are derived from the batch size while they are null.

    Attributes:
        train_steps: Steps of the training; null for `recipe.epochs` epochs.
        steps_per_loop: Steps between two reports; null for an epoch.
        summary_interval: Steps between two summaries; null for an epoch.
        checkpoint_interval: Steps between two checkpoints; null for an epoch.
        validation_interval: Steps between two evaluations; null for an epoch.
        validation_steps: Batches of an evaluation; null for as many whole batches as `recipe.validation_examples` hold,
            -1 for the whole data set.
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
        growth_rate: Channels that each layer adds.
        block_repeats: Layers of each dense block in place of those of `model_id`, for smaller networks.
    """

    model_id: int = 121
    growth_rate: int = 32
    block_repeats: list[int] | None = None


@dataclasses.dataclass
class Backbone(backbones.Backbone):
    """Model Garden's backbones and `densenet`."""

    densenet: DenseNet = dataclasses.field(default_factory=DenseNet)


@dataclasses.dataclass
class Model(model_garden.ImageClassificationModel):
    """Model Garden's classifier, with `densenet` among its backbones."""

    backbone: Backbone = dataclasses.field(
        default_factory=lambda: Backbone(type="resnet", resnet=backbones.ResNet(model_id=50))
    )


@dataclasses.dataclass
class GradientNorms(hyperparams.Config):
    """How the gradient norms that `clars` divides by are measured. Other optimizers ignore it.

    Attributes:
        mode: "exact" measures every example of the batch, "sampled" measures `norm_examples` of each replica's share,
            "replica" takes the norm of each replica's gradient instead; with one replica that is LARS.
        norm_examples: With "sampled", the number of examples, from 1 to the replica's batch.
        allow_generic: Whether to measure layers without a rule by differentiating each alone, example by example, at
            two to three times its own cost. Otherwise they are refused. The backbones in `Backbone` have rules.
    """

    mode: str = "exact"
    norm_examples: int | None = None
    allow_generic: bool = False


@dataclasses.dataclass
class ConAdv(hyperparams.Config):
    """Concurrent adversarial learning, arXiv 2106.00221; the arguments of `tf_largebatch.ConAdvModel`.

    Attributes:
        enabled: Whether each batch is trained on together with its adversarial images.
        epsilon: Radius of the ball around each image, in units of 1/255.
        step_size: Length of an attack step, in units of 1/255; null for `epsilon / num_steps`.
        num_steps: Number of attack steps.
        staleness: tau: the adversarial images of step t are made with the weights of step t - tau, concurrently with
            the training step before; 0 makes them within the step (DisAdv).
        targeted: Whether the attack descends the loss of a random wrong class; otherwise it ascends the true one's.
        random_start: Probability of a random point of the ball as the starting point.
        norm: "linf" or "l2".
        attack: "pgd", or "noise" for a random point of the ball.
        adversarial_weight: Weight of the adversarial images' loss; clean and augmented images have weight 1.
        augment: The view of a third stream with batch norms of its own, which the input pipeline makes, for example
            `{type: autoaug}`; null for none.
        value_range: Range of valid inputs: lower and upper of each channel, 6 numbers in one list. It must contain
            what Model Garden's standardization makes of 0 to 255, which null means.
        seed: Seed of the targets and starting points.
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
class LargeBatchTask(model_garden.ImageClassificationTask):
    """Model Garden's image classification with measured gradient norms and concurrent adversarial learning.

    Attributes:
        model: Network, input size and number of classes.
        gradient_norms: How the norms for the optimizer `clars` are measured.
        conadv: Concurrent adversarial learning.
        micro_batch_size: Splits each replica's batch into micro-batches of this many images, which are trained on one
            after the other within the step, attacks included; null for no split. Memory is that of one micro-batch.
            Gradient and norms are those of the whole batch, except that batch norms take their statistics from one
            micro-batch at a time.
    """

    model: Model = dataclasses.field(default_factory=Model)
    gradient_norms: GradientNorms = dataclasses.field(default_factory=GradientNorms)
    conadv: ConAdv = dataclasses.field(default_factory=ConAdv)
    micro_batch_size: int | None = None


@dataclasses.dataclass
class Recipe(hyperparams.Config):
    """What learning rate, warmup and step counts are derived from once the batch size is final.

    Attributes:
        train_examples: Images of an epoch.
        validation_examples: Images to evaluate.
        epochs: Epochs of the training, warmup included.
        base_learning_rate: Learning rate at `base_batch_size`; the peak is proportional to the batch size.
        base_batch_size: Batch size at which the peak is `base_learning_rate`; null for that peak at every batch size.
        warmup_epochs: Epochs of linear warmup; null for the table's, or for none without a table.
        table: "conadv" for the authors' peaks and warmups by batch size in place of the linear rule.
    """

    train_examples: int = model_garden.IMAGENET_TRAIN_EXAMPLES
    validation_examples: int = model_garden.IMAGENET_VAL_EXAMPLES
    epochs: float = 90.0
    base_learning_rate: float = 0.128
    base_batch_size: int | None = 256
    warmup_epochs: float | None = None
    table: str | None = None


@dataclasses.dataclass
class ExperimentConfig(cfg.ExperimentConfig):
    """An experiment whose null fields `validate` derives. Model Garden calls it after all overrides."""

    task: LargeBatchTask = dataclasses.field(default_factory=LargeBatchTask)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    def override(self, override_params: dict | hyperparams.Config, is_strict: bool = True) -> None:
        """Overrides fields, as Model Garden does; an unknown field is named with its whole path.

        Raises:
            KeyError: If `is_strict` and there is no such field.
        """
        if is_strict:
            refusals.refuse_unknown_fields(self, override_params)
        super().override(override_params, is_strict)

    def validate(self) -> None:
        """Checks every field and derives the null ones from the final batch size. It may be called again.

        Raises:
            ConfigurationError: If a field cannot be used. The message names the field, its value and what is allowed.
        """
        checks.check_experiment(self)
        super().validate()
        recipe.derive(self)
        checks.check_derived(self)
