# Both commands set everything up themselves: a virtual environment in .venv, then the packages.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

TEST = $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

.PHONY: demo test test-fast check format docs notebook

demo: $(VENV)/installed
	$(BIN)/sdpl demo

# Tests that start servers and kill processes wait for a loaded machine: what failed is run once more, alone, and must pass then.
test: $(VENV)/installed check
	$(TEST) || { echo "== once more, alone: what failed"; $(BIN)/python -m pytest --last-failed --last-failed-no-failures=none; }

test-fast: $(VENV)/installed
	$(TEST) -m "not slow"

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# build/docs/index.html: the pages of docs/ and the API reference. Whatever leads nowhere is an error.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs

# docs/tutorial.ipynb, out of docs/tutorial.md
notebook: $(VENV)/installed
	$(BIN)/python docs/notebook.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'sdpl needs Python 3.11 or newer: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[test]"
	@touch $@
