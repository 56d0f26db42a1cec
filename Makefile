# What these targets need they set up, once; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := -m pip install --quiet --disable-pip-version-check

# A process for each CPU, which therefore computes with one thread. A file of tests is in one of
# them, because its tests share what they train.
PARALLEL := --numprocesses auto --dist loadfile
# Many tests start processes, which read the package faster once it is compiled.
TESTING := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

.PHONY: demo test test-all oldest lint docs linkcheck dist clean

demo: .venv/.installed
	$(BIN)/ngvae train normal_gamma relaxed --data sprites --out runs/demo --overwrite
	$(BIN)/ngvae inspect runs/demo

test: .venv/.installed
	$(TESTING) $(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# With the tests that take minutes each, which continuous integration runs once a day.
test-all: .venv/.installed
	$(TESTING) $(BIN)/python -m pytest $(PARALLEL)

# With the oldest versions that setup.cfg admits; they use what is deprecated by now.
oldest: .venv-oldest/.installed
	$(TESTING) .venv-oldest/bin/python -m pytest $(PARALLEL) -W ignore::DeprecationWarning

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in docs/_build/html; it needs no network. Warnings, dead links among them, are errors.
docs: .venv/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -n -j auto docs docs/_build/html

# The links to other sites, which a network may hold against us.
linkcheck: .venv/.docs
	$(BIN)/python -m sphinx -q -b linkcheck -D nb_execution_mode=off docs docs/_build/linkcheck

dist: .venv/.installed
	$(BIN)/python .ci/dist.py

# The stamp is written last, so that an interrupted set-up is done again.
.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable ".[dev]"
	touch $@

# Sphinx and what it needs, for those who build the site.
.venv/.docs: .venv/.installed
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable ".[docs]"
	touch $@

.venv-oldest/.installed: setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(INSTALL) --constraint constraints-oldest.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info runs docs/_build
