# Every target makes the virtual environment it needs; nothing is to be prepared by hand.
# Overridable: PYTHON (the interpreter), VENV (the environment), WORKERS, PYTEST_ARGS.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:

# Where $HOME is unset (a clean environment) bash still knows it. The shims of pyenv run only for
# versions it has switched on, so its version folders are searched as well.
HOME_FOLDER := $(shell echo ~)
PYENV_FOLDER := $(or $(PYENV_ROOT),$(shell pyenv root 2>/dev/null),$(HOME_FOLDER)/.pyenv)
pyenv_pythons = $(sort $(wildcard $(foreach v,$(1),$(PYENV_FOLDER)/versions/$(v)*/bin/python3)))

# $(call find-python,condition on the version v,candidates): the first that runs, and can make an
# environment (on Debian `ensurepip` may be a package of its own).
find-python = $(shell for python in $(2); do "$$python" -c \
	'import ensurepip, sys, venv; v = sys.version_info[:2]; ($(1)) or sys.exit(1); print(sys.executable)' \
	2>/dev/null && break; done)

ifeq ($(origin PYTHON),undefined)
PYTHON = $(call find-python,v >= (3,11),python3 python3.13 python3.12 python3.11 \
	$(call pyenv_pythons,3.11 3.12 3.13))
endif
VENV ?= .venv
RUN := $(VENV)/bin
WORKERS ?= 2
# One file, one worker: what a file computes once for its tests is not computed twice.
PYTEST_ARGS ?= -n $(WORKERS) --dist loadfile

# uv trusts the system's certificates, as pip does.
export UV_SYSTEM_CERTS := 1
export UV_NATIVE_TLS := 1
CPU := JAX_PLATFORMS=cpu
JAX_CACHE := JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.cache/jax" \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.05

.PHONY: help test test-second demo lint types format docs notebooks bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

test: $(VENV)/.has-test ## run the tests
	$(CPU) $(JAX_CACHE) $(RUN)/python -m pytest $(PYTEST_ARGS)

# A second leg on a newer Python, and with it newer jax and ArviZ, where the machine has one. What
# proves the method and not the versions, pages and notebooks are left to the first.
FIRST_VERSION = $(shell p=$(VENV)/bin/python; [ -x $$p ] || p="$(PYTHON)"; \
	"$$p" -c 'import sys; print(tuple(sys.version_info[:2]))')
SECOND_PYTHON = $(call find-python,v in ((3,12),(3,13)) and v != $(FIRST_VERSION),python3.13 python3.12 \
	$(call pyenv_pythons,3.13) $(call pyenv_pythons,3.12))

test-second: ## run the tests again on Python 3.12 or 3.13, where found
	@python="$(SECOND_PYTHON)"; if [ -z "$$python" ]; then \
		echo "second leg: no Python 3.12 or 3.13 found, not run"; \
	else \
		echo "second leg: $$("$$python" --version)"; \
		$(MAKE) --no-print-directory test VENV=.venv-second PYTHON="$$python" \
			PYTEST_ARGS='$(PYTEST_ARGS) -m "not study"'; \
	fi

demo: $(VENV)/.has-base ## fit real data and show it
	$(RUN)/ssmkit demo

lint: $(VENV)/.has-lint ## check style and formatting
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(VENV)/.has-lint ## check types
	$(RUN)/basedpyright --pythonpath $(RUN)/python

format: $(VENV)/.has-lint ## put the code into shape
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: $(VENV)/.has-docs ## build the documentation; a warning is an error
	$(CPU) $(JAX_CACHE) $(RUN)/sphinx-build -W -b html docs docs/_build/html

notebooks: $(VENV)/.has-test ## execute the notebooks in place
	@for notebook in notebooks/*.py; do \
		[ -e "$$notebook" ] || continue; \
		$(RUN)/jupytext --quiet --update --to ipynb "$$notebook" && \
		$(CPU) $(JAX_CACHE) $(RUN)/jupyter-execute --inplace "$${notebook%.py}.ipynb" || exit 1; \
	done

bench: $(VENV)/.has-bench ## compare speed with other libraries, side by side
	$(CPU) $(RUN)/python benchmarks/run.py

clean: ## remove environments, caches and whatever was built
	rm -rf .venv .venv-second .cache .pytest_cache .ruff_cache .hypothesis docs/_build build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, then one stamp for each extra in it. pip alone will do; uv is faster.
$(VENV)/.made:
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11 or newer found; set PYTHON=/path/to/python3"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check uv || echo "uv is not available, pip does its work"
	@touch $@

$(VENV)/.has-base: pyproject.toml $(VENV)/.made
	$(call install,.)
	@touch $@

$(VENV)/.has-%: pyproject.toml $(VENV)/.made
	$(call install,.[$*])
	@touch $@ $(VENV)/.has-base

# particles 0.4 declares numpy < 2 and runs on 2: what it needs is in the extra, it comes without.
$(VENV)/.has-bench: pyproject.toml $(VENV)/.made
	$(call install,.[bench])
	@{ [ -x $(RUN)/uv ] && $(RUN)/uv pip install --quiet --python $(RUN)/python --no-deps particles==0.4; } \
	|| $(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps particles==0.4
	@touch $@ $(VENV)/.has-base

install = @echo "installing $(1) into $(VENV)"; \
	{ [ -x $(RUN)/uv ] && $(RUN)/uv pip install --quiet --python $(RUN)/python -e '$(1)'; } \
	|| $(RUN)/python -m pip install --quiet --disable-pip-version-check -e '$(1)'
