# `make demo` and `make test` set up .venv on their own. Only relative paths and `python -m`: both keep working
# in a directory with a space in its name, where the console scripts' first lines do not.
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
# What is installed: the package for the demo, its development tools as well for the tests.
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev
DEMO_RUN ?= runs/demo

.PHONY: help demo test lint format clean

help:
	@echo "make demo    run the whole method on the small built-in model (no download), write $(DEMO_RUN)/report.html"
	@echo "make test    run the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the source"
	@echo "make clean   remove caches and build products (keeps .venv and runs/)"

# torch comes first and alone: a later resolution then finds it installed and fetches no second build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "No $(PYTHON) found: install Python 3.11 or newer, or name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1), but 3.11 or newer is needed: name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(VENV_PYTHON) -m pip install -c constraints.txt torch==2.13.0
	$(VENV_PYTHON) -m pip install -c constraints.txt -e .
	@touch $(INSTALLED)

$(INSTALLED_DEV): $(INSTALLED)
	$(VENV_PYTHON) -m pip install -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED_DEV)

demo: $(INSTALLED)
	$(VENV_PYTHON) -m rasa_moe run --out "$(DEMO_RUN)"

test: $(INSTALLED_DEV)
	$(VENV_PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(INSTALLED_DEV)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: $(INSTALLED_DEV)
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache src/rasa_moe.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
