# Needs Python 3.11 or newer and nothing else; everything goes into $(VENV) and runs/.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO := runs/demo

.PHONY: demo test lint clean

# A short training on street scenes that we draw, its evaluation, and pictures to look at.
demo: $(VENV)/installed
	$(PY) main.py --mode=train --config=configs/demo.py --workdir=$(DEMO)
	$(PY) main.py --mode=evaluate --config=configs/demo.py --workdir=$(DEMO)
	@echo 'Look at $(DEMO)/evaluation/sheet.png and $(DEMO)/curves.png'

test: $(VENV)/installed-test lint
	$(PY) -m pytest

lint: $(VENV)/installed-test
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV) runs

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; choose it with PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/installed-test: $(VENV)/installed pyproject.toml
	$(PY) -m pip install --quiet --editable '.[test]'
	touch $@
