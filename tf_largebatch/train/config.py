"""The arguments of a run: `TrainConfig` and its sections, one for each part of the program that reads them."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_largebatch import data, models
from tf_largebatch.distribute import strategies
from tf_largebatch.train.adversarial import AdversarialConfig
from tf_largebatch.train.flag import Flag, flag, flags_of
from tf_largebatch.train.optimizers import OptimizerConfig

SAVE_BEST = ("val_accuracy", "val_loss")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
# Arguments that may differ when a run is resumed: they do not change what is computed.
NOT_OF_THE_RUN = (
    *("data_dir", "download", "output_dir", "resume", "stop_after_epoch", "verbose"),
    *("eval_attack", "eval_epsilon"),
    *("save_best", "tensorboard"),
    *("strategy", "replicas", "tpu"),
)
# Arguments that say where and for how long this process trains, not which run it is: config.json leaves them out.
NOT_STORED = ("output_dir", "resume", "stop_after_epoch", "verbose", "download")
# The layout of a run that is resumed may differ: it is not taken from the run's directory.
LAYOUT = ("strategy", "replicas", "tpu")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set: the arguments of `tf_largebatch.data.load`."""

    name: str = flag(
        "digits",
        f"{', '.join(data.WELL_KNOWN)}, or any other image classification set of tensorflow_datasets; folder for the "
        "images in --data_dir; or the path of an .npz file with images and labels.",
        name="dataset",
    )
    data_dir: str | None = flag(
        None,
        "With --dataset=folder: directory of images, train/CLASS/IMAGE and optionally validation/CLASS/IMAGE, JPEG or "
        "PNG. Else: directory of prepared tensorflow_datasets; default: TFDS_DATA_DIR, then tensorflow_datasets' own.",
    )
    download: bool = flag(False, "Download the data set if it is not prepared.")
    eval_split: str = flag(
        "test", "Evaluate on the test images or on training images that are held out.", data.EVAL_SPLITS
    )
    validation_examples: int | None = flag(
        None,
        "With --eval_split=validation, or a file or folder without test images: training images to hold out; default: "
        "5000, at most a tenth.",
    )
    augment: str = flag(
        "auto",
        "Augmentation of the training images; auto means crop_flip for CIFAR, inception for streamed sets, else none. "
        "random: Keras's random flips, shifts, rotations, zooms and contrasts, for sets that fit in memory.",
        data.AUGMENTATIONS,
    )
    image_size: int | None = flag(None, "Resize images to this height and width; default: the data set's own size.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = flag(
        "resnet8",
        f"{', '.join(models.names())}, a keras.applications name, or a .keras file to go on training, which takes "
        "pixels as they are stored.",
        name="model",
    )
    weights: str | None = flag(
        None,
        "With a keras.applications model: imagenet, or a .weights.h5 file of the network without its classifier; "
        "default: random weights.",
    )
    mixed_precision: str = flag("float32", "Keras dtype policy.", PRECISIONS)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How the run trains, where, and what it records."""

    batch_size: int = flag(512, "Images in one update.")
    epochs: int = flag(60, "Passes over the training images.")
    micro_batch_size: int | str | None = flag(
        None,
        "Split each batch into micro-batches of this many images to save memory; auto: the largest that fits; default: "
        "do not split.",
        words=("auto",),
    )
    label_smoothing: float = flag(0.0, "Share of the label that is spread evenly over all classes.")
    mixup: float = flag(
        0.0,
        "Mix pairs of training images and their labels with weights from Beta(mixup, mixup), such as 0.2; default: do "
        "not.",
    )
    deterministic: bool = flag(
        False, "Use operations that give the same bits in every run alone; on GPUs they may be slower."
    )
    noise_scale: bool | None = flag(
        None, "Measure the gradient noise scale; default: yes with an optimizer that reads per-example norms."
    )
    norm_examples: int | None = flag(
        None, "Measure the gradient norms of this many images of each batch; default: of all, which is exact."
    )
    strategy: str = flag("one_device", "Which devices share the batch.", strategies.STRATEGIES)
    replicas: int | None = flag(
        None,
        "With --strategy=mirrored: how many GPUs to use, by default all; without GPUs, into how many logical devices "
        "to split the CPU.",
    )
    tpu: str | None = flag(None, "With --strategy=tpu: name or address of the TPU; default: local, this host's TPU.")
    seed: int = flag(0, "Seed of the initial weights, the order of images, augmentation and dropout.")
    record_every: int | None = flag(
        None, "Record the layer-wise rates after this many updates; default: 200 records in the run."
    )
    save_best: str | None = flag(None, "Save the model of the best epoch by this metric as best.keras.", SAVE_BEST)
    tensorboard: bool = flag(
        False, "Write metrics, layer-wise rates and norms for TensorBoard to tensorboard/ in the run's directory."
    )
    output_dir: str | None = flag(None, "Directory of the run, a local path; default: a new one under runs/.")
    resume: bool = flag(False, "Continue the run in --output_dir; flags that are not given keep the run's values.")
    stop_after_epoch: int | None = flag(None, "Stop after this epoch, to be resumed later.")
    verbose: int | None = flag(
        None,
        "0: silent; 1: one line that is rewritten, with updates, losses, accuracies and the time left; 2: one line an "
        "epoch; default: 1 on a terminal, else 2.",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every argument of a run, in sections; each argument is a command-line flag.

    `TrainConfig.from_flags(dataset="cifar10", batch_size=4096)` makes one from flags. None stands for a default that
    depends on other flags; `resolve.resolved` fills it in.
    """

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()  # noqa: RUF009 (frozen, as the others)
    adversarial: AdversarialConfig = AdversarialConfig()  # noqa: RUF009 (frozen, as the others)
    run: RunConfig = RunConfig()

    @classmethod
    def from_flags(cls, **values: Any) -> TrainConfig:
        """Returns the configuration in which these flags are given.

        Args:
            **values: Values by the flags' names.

        Raises:
            TypeError: If there is no such flag.
        """
        return cls().with_flags(**values)

    def with_flags(self, **values: Any) -> TrainConfig:
        """Returns a copy in which the values of these flags are replaced; see `from_flags`."""
        unknown = sorted(set(values) - set(FLAGS))
        if unknown:
            raise TypeError(f"{unknown[0]} is not a flag of {type(self).__name__}.")
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            sections.setdefault(FLAGS[name].section, {})[FLAGS[name].field] = value
        return dataclasses.replace(
            self, **{name: dataclasses.replace(getattr(self, name), **fields) for name, fields in sections.items()}
        )

    def flags(self) -> dict[str, Any]:
        """Returns the value of every flag by its name."""
        return {name: getattr(getattr(self, one.section), one.field) for name, one in FLAGS.items()}

    def stored(self) -> dict[str, Any]:
        """Returns the flags that config.json holds, from which the run can be repeated."""
        return {name: value for name, value in self.flags().items() if name not in NOT_STORED}

    def of_the_run(self) -> dict[str, Any]:
        """Returns the flags that determine the result, without those that a resumed run may change."""
        return {name: value for name, value in self.flags().items() if name not in NOT_OF_THE_RUN}


FLAGS: dict[str, Flag] = flags_of(TrainConfig)
