# Everything installs itself: a target's first run makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CAPS := --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench campaign chip bluez clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(CAPS) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install $(CAPS) -e '.[dev]'
	@touch $@

$(VENV)/.lint: $(VENV)/.dev
	$(BIN)/python -m pip install $(CAPS) -e '.[lint]'
	$(BIN)/python -m pip install $(CAPS) --no-deps --target $(VENV)/c3-stubs \
	    micropython-esp32-esp32-generic-c3-stubs micropython-stdlib-stubs
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install $(CAPS) -e '.[bench]'
	@touch $@

demo: $(VENV)/.run  ## the whole pipeline on virtual beacons, nothing to set up
	$(BIN)/beacon-ota demo $(ARGS)

test: $(VENV)/.dev  ## the test suite
	$(BIN)/python -m pytest -n 4 $(ARGS)

lint: $(VENV)/.lint  ## ruff and pyright, host and device code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright -p firmware

bench: $(VENV)/.bench  ## the numbers of docs/measures.md
	$(BIN)/python -m tests.bench $(ARGS)

campaign: $(VENV)/.dev  ## power cuts, faults, fuzzing; long
	$(BIN)/beacon-ota campaign all $(ARGS)
	$(BIN)/python -m pytest -n 2 -m slow
	BEACON_OTA_EXAMPLES=new $(BIN)/python -m pytest -n 2 -k _prop

chip: $(VENV)/.dev  ## the real core on an emulated ESP32-C3; see docs/emulated-c3.md
	$(BIN)/python -m pytest -m slow tests/chip -rs $(ARGS)

bluez: $(VENV)/.dev  ## the commands on real BlueZ, in a machine of Debian's packages; see docs/virtual-radio.md
	BEACON_OTA_BLUEZ=1 $(BIN)/python -m pytest -m slow tests/bluez -rs $(ARGS)

clean:  ## remove what the targets made
	rm -rf $(VENV) build dist reports .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
