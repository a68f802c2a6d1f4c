# `make train` and `make test` need Python 3.11 or 3.12 and make; everything else they install into .venv. The package
# itself runs on Python 3.10 too, but JAX does not.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Model Garden pins an older TensorFlow: its tests have an environment of their own.
GARDEN_VENV ?= .venv-garden
GARDEN_BIN := $(GARDEN_VENV)/bin
GARDEN_STAMP := $(GARDEN_VENV)/.installed
# The oldest Python, TensorFlow, Keras and tensorflow-datasets that setup.py allows; `make test` has the newest.
OLDEST_PYTHON ?= python3.10
OLDEST_VENV ?= .venv-oldest
OLDEST := tensorflow==2.20.0 keras==3.12.0 tensorflow-datasets==4.9.8
OLDEST_STAMP := $(OLDEST_VENV)/.installed

# What Python compiles is kept: the tests start many processes, which would compile the tests and the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test test-base test-jax test-garden test-long test-oldest coverage docs dist release-check matrix lint clean

# The default run: digits, batch 512, CLARS without warmup. More flags: make train ARGS="--epochs=5"
train: $(STAMP)
	$(BIN)/python -m tf_largebatch.train $(ARGS)

# Tests of tf_keras and of Model Garden run in their own environment.
NOT_GARDEN := --ignore=tests/tf_keras --ignore=tests/model_garden

test: test-base test-jax test-garden

test-base: $(STAMP) lint
	$(BIN)/python -m pytest tests $(NOT_GARDEN) --numprocesses=2 --dist=worksteal $(ARGS)

# The backend-neutral tests once more on JAX, and what compares JAX with TensorFlow. Programs run once or twice there:
# they are compiled with few optimizations, which takes a fifth less time; test-long optimizes as usual.
test-jax: $(STAMP)
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest $(shell cat tests/jax_paths.txt) --numprocesses=2 --dist=worksteal $(ARGS)

test-garden: $(GARDEN_STAMP)
	$(GARDEN_BIN)/python -m pytest tests/tf_keras tests/model_garden --numprocesses=2 --dist=worksteal $(ARGS)

# Which lines and branches of the package the tests of each world execute, those of `make test`, on JAX with the files that
# `make test-long` runs there; the counting takes its time. ARGS="-k momentum" counts a part.
COUNTED := --numprocesses=2 --dist=worksteal --cov --cov-report=

coverage: $(STAMP) $(GARDEN_STAMP)
	COVERAGE_FILE=.coverage.tensorflow $(BIN)/python -m pytest tests $(NOT_GARDEN) $(COUNTED) $(ARGS)
	COVERAGE_FILE=.coverage.jax KERAS_BACKEND=jax $(BIN)/python -m pytest \
	  $(shell cat tests/jax_paths.txt tests/jax_paths_long.txt) $(COUNTED) $(ARGS)
	COVERAGE_FILE=.coverage.garden $(GARDEN_BIN)/python -m pytest tests/tf_keras tests/model_garden $(COUNTED) $(ARGS)
	$(BIN)/python tests/reliability/coverage_table.py

# What takes minutes or the network: the wheel in a clean environment, deep models in every precision.
test-long: $(STAMP) $(GARDEN_STAMP)
	$(BIN)/python -m pytest tests $(NOT_GARDEN) -m long $(ARGS)
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(shell cat tests/jax_paths.txt) -m long $(ARGS)
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(shell cat tests/jax_paths_long.txt) -m 'long or not long' $(ARGS)
	$(GARDEN_BIN)/python -m pytest tests/tf_keras tests/model_garden -m long $(ARGS)

# Notebooks, documentation, packages and the TPU compiler are the same there.
test-oldest: $(OLDEST_STAMP)
	$(OLDEST_VENV)/bin/python -m pytest tests --numprocesses=2 --dist=worksteal \
	  $(foreach part,colab docs model_garden packaging tf_keras tpu,--ignore=tests/$(part)) $(ARGS)

# The documentation in build/docs, warnings are errors. From nothing, so that no page is stale.
docs: $(STAMP)
	rm -rf build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

# Wheel and source distribution in dist/, with the same bytes wherever they are built.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python tests/packaging/build_distributions.py dist

# The wheel with each extra in a clean environment of each Python (python3.10 to python3.12 on the path); minutes each.
release-check: dist
	$(BIN)/python tests/packaging/release_check.py dist $(ARGS)

# A quick selection of the tests with the oldest and newest Python, Keras, TensorFlow and JAX.
matrix: dist
	$(BIN)/python tests/packaging/matrix.py dist $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

# Reinstalls when setup.py changes; the package itself is installed in place.
$(STAMP): setup.py tf_largebatch/version.py
	$(call install,$(VENV),11,tensorflow$(comma)jax$(comma)dev$(comma)docs$(comma)notebooks$(comma)tpu)

$(GARDEN_STAMP): setup.py tf_largebatch/version.py
	$(call install,$(GARDEN_VENV),10,dev$(comma)garden$(comma)notebooks)

$(OLDEST_STAMP): PYTHON := $(OLDEST_PYTHON)
$(OLDEST_STAMP): setup.py tf_largebatch/version.py
	$(call install,$(OLDEST_VENV),10,tensorflow$(comma)dev,$(OLDEST))

comma := ,
define install
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, $(2)) <= v <= (3, 12) else "Python 3.$(2) to 3.12 is needed, this is %d.%d: set PYTHON=python3.12 or the like." % v)'
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet --upgrade pip
	$(1)/bin/pip install --quiet --editable '.[$(3)]' $(4)
	touch $(1)/.installed
endef

clean:
	rm -rf $(VENV) $(GARDEN_VENV) $(OLDEST_VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .jax_cache .coverage
