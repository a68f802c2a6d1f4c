# `make train` and `make test` need Python 3.10 to 3.12 and make; everything else they install into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: train test lint clean

# The default run: digits, batch 512, CLARS without warmup. More flags: make train ARGS="--epochs=5"
train: $(STAMP)
	$(BIN)/python -m tf_largebatch.train $(ARGS)

test: $(STAMP) lint
	$(BIN)/python -m pytest tests --numprocesses=2 --cov=tf_largebatch --cov-report=term $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Reinstalls when setup.py changes; the package itself is installed in place.
$(STAMP): setup.py tf_largebatch/version.py
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else "Python 3.10 to 3.12 is needed, this is %d.%d: set PYTHON=python3.12 or the like." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .coverage
