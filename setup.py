"""Packaging of tf_largebatch. Metadata only: everything else about the project is in README.md."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "tf_largebatch" / "version.py").read_text())[1]

TENSORFLOW = [
    "tensorflow>=2.20",
    "tensorflow-datasets>=4.9.8",
    # tensorflow-datasets imports importlib_resources in download_and_prepare without declaring it.
    "importlib_resources",
]

setup(
    name="tf_largebatch",
    version=VERSION,
    description="Large-batch training for TensorFlow and Keras: CLARS, exact per-example gradient norms, ConAdv",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tf_largebatch", "tf_largebatch.*"]),
    license_files=["LICENSE"],
    package_data={"": ["README.md"], "tf_largebatch": ["py.typed"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "keras>=3.12",
        "numpy",
        "absl-py",
        # The command line: its default data set (digits) and its curves.
        "scikit-learn",
        "matplotlib",
        # Folders of images.
        "pillow",
        # Studies: their configuration and their search.
        "pyyaml",
        "scipy",
    ],
    extras_require={
        # What Keras runs on: one of the two, or both.
        "tensorflow": TENSORFLOW,
        "jax": ["jax>=0.7"],
        # TensorFlow Model Garden lives in tf_keras and pins TensorFlow 2.20.
        "garden": [*TENSORFLOW, "tf-models-official==2.20.0", "tf_keras>=2.20,<2.21"],
        # The TPU compiler, to compile for a TPU without one; jaxlib and libtpu belong together.
        "tpu": ["jax==0.10.2", "jaxlib==0.10.2", "libtpu==0.0.42.1; platform_system == 'Linux'"],
        "notebooks": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
        "docs": ["sphinx>=8.1", "myst-parser>=4.0", "furo>=2024.8.6", "latex2mathml>=3.77"],
        "dev": [
            "build",
            "coverage>=7.10",
            "hypothesis>=6.100",
            "mypy",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "ruff==0.14.5",
            "setuptools>=77",
            "vulture>=2.14",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: GPU",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
