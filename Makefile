# Needs Python 3.11 or newer and nothing else; everything goes into $(VENV) and runs/.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO := runs/demo
# On a CPU, two devices keep two cores busier than one; accelerators do not see it.
TWO_DEVICES := XLA_FLAGS=--xla_force_host_platform_device_count=2

# Which versions `compatibility` takes: highest, or lowest-direct for the lower bounds.
VERSIONS ?= highest

.PHONY: demo test lint compatibility clean

# A short training on street scenes that we draw, from the weights of the package, its evaluation,
# and pictures to look at.
demo: $(VENV)/installed
	$(TWO_DEVICES) $(PY) main.py --mode=train --config=configs/demo.py --workdir=$(DEMO) \
	  --config.init_from=hrnet16_slim_camvid
	$(PY) main.py --mode=evaluate --config=configs/demo.py --workdir=$(DEMO)
	@echo 'Look at $(DEMO)/report.html and $(DEMO)/evaluation/report.html'

test: $(VENV)/installed-test lint
	$(PY) -m pytest -n 2 --dist worksteal

lint: $(VENV)/installed-test
	$(PY) -m ruff check .
	$(PY) -m mypy

# Installs the package beside nothing else, and tries it: PYTHON=python3.13 VERSIONS=lowest-direct.
compatibility:
	$(PYTHON) -m venv --clear $(VENV)-compatibility
	$(VENV)-compatibility/bin/python -m pip install --quiet 'uv>=0.9,<1'
	$(VENV)-compatibility/bin/uv pip install --quiet --python $(VENV)-compatibility \
	  --resolution $(VERSIONS) --requirement requirements.txt .
	$(VENV)-compatibility/bin/python tests/smoke.py

clean:
	rm -rf $(VENV) $(VENV)-compatibility runs

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; choose it with PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/installed-test: $(VENV)/installed pyproject.toml
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@
