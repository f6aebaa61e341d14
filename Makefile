# Two commands: `make course` runs the course, `make test` proves that it works. Only relative paths: the folder may have spaces.
PYTHON ?= python3
# Another build of PyTorch than pip's default, from its own index (see README): make course TORCH_INDEX=https://...
TORCH_INDEX ?=

# PyTorch's threads wait for one another by spinning. A short wait leaves the cores to others: python -m benchmarks.threads.
# The first is read on Linux, the second on macOS, when PyTorch loads.
export GOMP_SPINCOUNT ?= 600
export KMP_BLOCKTIME ?= 1

SHELL := bash
STAMP := .venv/.course-is-installed
RUN := .venv/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)')

# The stamp holds the folder that the environment was made in, for an environment cannot be moved. It counts only while its
# Python runs: the one that it was made from may have been removed since.
ifneq ($(shell .venv/bin/python -c '' 2>/dev/null && cat $(STAMP) 2>/dev/null),$(shell pwd -P))
.PHONY: $(STAMP)
endif

.PHONY: help course test test-faults lab figures tidy clean
help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1	\2/p' Makefile

course: $(STAMP)  ## run every notebook and build pages to read in build/course/ (ONLY="01_monai_101" for some)
	@$(RUN) book $(ONLY)

# Notebooks call `tensorboard` and FLARE `python3` by name, so the environment comes first on the path.
test: export PATH := $(CURDIR)/.venv/bin:$(PATH)
test: $(STAMP)  ## check everything: lint, unit and fault tests, all notebooks
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@shopt -s nullglob; .venv/bin/shellcheck .ci/run data_scripts/*.sh
	@$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder --nbmake --nbmake-kernel=python3 --nbmake-timeout=1800 -m 'not long' \
	  tests notebooks

test-faults: export PATH := $(CURDIR)/.venv/bin:$(PATH)
test-faults: $(STAMP)  ## kill, forge, forbid and restart in a real federation: all fault tests, some ten minutes
	@$(RUN) pytest -m faults tests/deploy

# The whole folder is served, so that the notebooks' pictures in figs/ are seen. JupyterLab refuses to serve root, which is
# who one is in a container, unless told so.
lab: export PATH := $(CURDIR)/.venv/bin:$(PATH)
lab: $(STAMP)  ## open the notebooks in JupyterLab (LAB="--no-browser" and other options)
	@$(RUN) jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $$([ "$$(id -u)" != 0 ] || echo --allow-root) $(LAB)

figures: $(STAMP)  ## draw the pictures in figs/ again
	@$(RUN) book.figs

tidy: $(STAMP)  ## format the code, clear the notebooks' outputs
	@$(RUN) ruff check --fix
	@$(RUN) ruff format
	@$(RUN) book.tidy

clean:  ## remove the environment and the pages; data and runs stay
	rm -rf .venv build *.egg-info

$(STAMP): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: the course needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Install one and say which: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@if { [ -e $(STAMP) ] && [ "$$(cat $(STAMP))" != "$$(pwd -P)" ]; } || ! .venv/bin/python -c '' 2>/dev/null; then rm -rf .venv; fi
	@echo "Setting up the environment in .venv (minutes the first time, nothing to do later)"
	@$(PYTHON) -m venv .venv
	@$(PIP) -q -r requirements.txt
	@$(PIP) -q --editable '.[test,book,privacy]'
	@pwd -P > $(STAMP)
