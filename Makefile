# Two commands on a machine with Python 3.11 to 3.13, make and a package registry:
#   make compress     sets up .venv and runs the built-in recipe      make compress ARGS="mine.toml --out runs/mine"
#   make test         sets up .venv and runs the checks and tests
#   make check        the checks and the quick tests, within two minutes
#   make wheel        dist/edgekd-*.whl, and dist/edgekd_light-*.whl without what trains
#   make mutants      small faults, planted one at a time, and which of them no test notices: make mutants ARGS="edgekd/losses"
#   make fuzz         the property tests with thousands of random examples, 10 minutes; an hour: make fuzz ARGS="--minutes 60"
# PYTHON    the interpreter that .venv is made with
# PIP_ARGS  for pip install, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for the CPU build of torch
PYTHON ?= python3
PIP_ARGS ?=
# JOBS      processes that tests run in; those that time something run alone afterwards
JOBS ?= 2
QUICK := layers types parts tree contributing doctests recipe keys losses budget front gains intervals results cli placement qdq_graph
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c .constraints.txt $(PIP_ARGS)

LINT = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.PHONY: compress test check fuzz mutants wheel clean
.DELETE_ON_ERROR:

compress: $(VENV)/.ready
	$(BIN)/edgekd compress $(ARGS)

test: $(VENV)/.ready-test
	$(LINT)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not alone" $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? -eq 5 ]  # 5: none was selected

check: $(VENV)/.ready-test
	$(LINT)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not alone and not slow" $(QUICK:%=tests/test_%.py)

fuzz: $(VENV)/.ready-test
	$(BIN)/python tests/fuzz.py $(ARGS)

mutants: $(VENV)/.ready-mutants
	$(BIN)/python tests/mutants.py $(ARGS)

wheel: $(VENV)/.ready-test
	$(BIN)/python -m hatchling build -t wheel -d dist
	cd .light && ../$(BIN)/python -m hatchling build -t wheel -d ../dist

clean:
	rm -rf $(VENV) build dist .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# a stamp is written when everything before it worked: a setup that was cut short is done again
$(VENV)/.ready: pyproject.toml .constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" || \
		{ echo "edgekd needs Python 3.11 to 3.13: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "setting up $(VENV): a few minutes, once" >&2
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) hatchling editables
	$(INSTALL) --no-build-isolation -e ".[images]"
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(INSTALL) --no-build-isolation -e ".[test]"
	@touch $@

$(VENV)/.ready-mutants: $(VENV)/.ready-test
	$(INSTALL) --no-build-isolation -e ".[test,mutants]"
	@touch $@
