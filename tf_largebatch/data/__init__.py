"""Image classification data sets: built-in digits, the rest through tensorflow_datasets.

The order and the augmentation of every image depend on (seed, epoch) alone, so that a run resumed at an epoch sees what
the undisturbed run would have seen. Sets that fit in memory are decoded once and kept as uint8 arrays; each epoch
shuffles all of their images (without a shuffle buffer), and several threads gather, augment and standardize whole
batches ahead of the training step. Larger sets are streamed from their record files.

Pixels are standardized here, not in the model: `input = (pixel / pixel_scale - mean) / std`, with the mean and standard
deviation of each channel over the training images in use (for streamed sets, the customary constants of ImageNet).
"""

from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.digits import load_digits
from tf_largebatch.data.loading import AUGMENTATIONS, EVAL_SPLITS, load
from tf_largebatch.data.memory import check_labels, crop_and_flip, from_arrays
from tf_largebatch.data.sets import SETS, KnownSet, is_built_in

WELL_KNOWN = tuple(SETS)

__all__ = [
    "AUGMENTATIONS",
    "EVAL_SPLITS",
    "SETS",
    "WELL_KNOWN",
    "Dataset",
    "KnownSet",
    "check_labels",
    "crop_and_flip",
    "from_arrays",
    "is_built_in",
    "load",
    "load_digits",
]
