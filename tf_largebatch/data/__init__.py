"""Image classification data sets: real digits built in, the rest through tensorflow_datasets.

The order and the augmentation of every image are a function of (seed, epoch) alone, so a run resumed at an
epoch sees exactly what the undisturbed run would have seen. Sets that fit in memory are decoded once and kept
as uint8 arrays; each epoch shuffles all of their images (no shuffle buffer), and whole batches are gathered,
augmented and standardised on several threads ahead of the training step. Larger sets are streamed from their
record files.

Pixels are standardised here, not in the model: `input = (pixel / pixel_scale - mean) / std`, with the
per-channel mean and standard deviation of the training images in use (ImageNet's customary constants for
streamed sets).
"""

from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.loading import AUGMENTATIONS, EVAL_SPLITS, load, load_digits
from tf_largebatch.data.memory import check_labels, crop_and_flip, from_arrays
from tf_largebatch.data.tfds import WELL_KNOWN

__all__ = [
    "AUGMENTATIONS",
    "EVAL_SPLITS",
    "WELL_KNOWN",
    "Dataset",
    "check_labels",
    "crop_and_flip",
    "from_arrays",
    "load",
    "load_digits",
]
