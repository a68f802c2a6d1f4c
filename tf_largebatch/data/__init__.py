"""Image classification data sets: built-in digits, NumPy files, directories of images, sets of tensorflow_datasets.

The order and the augmentation of every image depend on (seed, epoch) alone, so that a run resumed at an epoch sees what
the undisturbed run would have seen. Sets that fit in memory are decoded once and kept as uint8 arrays; each epoch
shuffles all of their images (without a shuffle buffer). Where TensorFlow is installed, several of its threads gather,
augment and standardize whole batches ahead of the training step; where it is not, NumPy makes the same batches. Larger
sets are streamed from their files, which needs TensorFlow.

Pixels are standardized here, not in the model: `input = (pixel / pixel_scale - mean) / std`, with the mean and standard
deviation of each channel over the training images in use (for streamed sets, the customary constants of ImageNet).
"""

from tf_largebatch.data.batches import ArrayBatches, tensorflow_is_installed, with_one_hot_labels
from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.digits import load_digits
from tf_largebatch.data.loading import AUGMENTATIONS, EVAL_SPLITS, load
from tf_largebatch.data.memory import check_labels, from_arrays
from tf_largebatch.data.parts import filled_up, part
from tf_largebatch.data.sets import FOLDER, SETS, KnownSet, check_applicable, is_built_in

WELL_KNOWN = tuple(SETS)

__all__ = [
    "AUGMENTATIONS",
    "EVAL_SPLITS",
    "FOLDER",
    "SETS",
    "WELL_KNOWN",
    "ArrayBatches",
    "Dataset",
    "KnownSet",
    "check_applicable",
    "check_labels",
    "filled_up",
    "from_arrays",
    "is_built_in",
    "load",
    "load_digits",
    "part",
    "tensorflow_is_installed",
    "with_one_hot_labels",
]
