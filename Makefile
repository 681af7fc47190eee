# make demo    install, train a masked diffusion LM on text Python itself carries, evaluate it, let it write
# make test    install, run every test
# make check   the linters, as CI runs them
# make studies install, run every study at its small budget: 20 minutes on two cores
#
# PYTHON       the interpreter the virtual environment is made with (3.11 or newer)
# PIP_OPTIONS  further options for pip: another index for a CPU-only or a CUDA build of torch, for instance
#                  make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
#              or, to use a torch that is already installed, PYTHON=... VENV_OPTIONS=--system-site-packages CONSTRAINTS=
PYTHON ?= python3
VENV ?= .venv
VENV_OPTIONS ?=
CONSTRAINTS ?= -c constraints.txt
PIP_OPTIONS ?=
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_OPTIONS) $(CONSTRAINTS)
INSTALLED = $(VENV)/.installed

.PHONY: demo test check studies clean

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "redraft needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV) \
		|| { echo "no virtual environment could be made: on Debian, apt install python3-venv" >&2; exit 2; }
	$(PIP) --quiet --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf runs/demo
	$(VENV)/bin/python examples/demo.py --out runs/demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 tests

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

studies: $(INSTALLED)
	rm -rf runs/studies-quick
	$(VENV)/bin/python benchmarks/studies.py --out runs/studies-quick

clean:
	rm -rf $(VENV) runs/demo runs/studies-quick
