# make train, on a machine with nothing but Python and make: everything goes into .venv, from hash-pinned requirements.

ARGS = inverted_pendulum
PYTHON ?= python3
# What .venv was last made for, so that a GPU machine has to be told once.
ACCELERATOR ?= $(firstword $(patsubst .venv/for-%,%,$(wildcard .venv/for-*)) cpu)
UV_VERSION = 0.13.9
PIP_AUDIT_VERSION = 2.10.1

ifeq ($(filter cpu cuda12 cuda13,$(ACCELERATOR)),)
$(error ACCELERATOR is '$(ACCELERATOR)', and can be cpu, cuda12 or cuda13)
endif

requirements := requirements/$(if $(filter cpu,$(ACCELERATOR)),base,$(ACCELERATOR)).txt
pip_install := .venv/bin/python -m pip install --quiet
pinned := --require-hashes --only-binary :all: --requirement
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help train test test-slow check docs format lock audit clean
.DEFAULT_GOAL := help

help:
	@echo 'make train       train the inverted pendulum; make train ARGS="hopper --max-kl 0.02" for anything else'
	@echo '                 on an NVIDIA GPU: make train ACCELERATOR=cuda12 (or cuda13), remembered in .venv'
	@echo 'make test        the tests that take seconds'
	@echo 'make test-slow   the tests that take minutes'
	@echo 'make check       formatting, lint, types, and the documentation as make docs builds it'
	@echo 'make docs        the documentation as pages in site/; a broken link or an undocumented public name fails it'
	@echo 'make format      format the code and apply the safe fixes of the linter'
	@echo 'make lock        requirements/*.txt from pyproject.toml; LOCK=--upgrade for the newest versions allowed'
	@echo 'make audit       look the pinned packages up in the advisories that PyPI publishes'
	@echo 'make clean       remove .venv, caches and build results; runs/ stays'
	@echo 'PYTHON=python3.12 chooses the Python that .venv is made with.'

# exec: signals and the exit status are the trainer's own.
train: .venv/installed
	@exec .venv/bin/trpo-brax train $(ARGS)

test: .venv/installed-dev
	@.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: .venv/installed-dev
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv/bin/python -m pytest -m slow --timeout 3600
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" \
	  $(addprefix tests/,algorithm learner training runs integration)

check: .venv/installed-dev
	@.venv/bin/ruff format --check
	@.venv/bin/ruff check
	@.venv/bin/mypy
	@.venv/bin/mkdocs build

docs: .venv/installed-dev
	@.venv/bin/mkdocs build

format: .venv/installed-dev
	@.venv/bin/ruff check --fix --exit-zero --quiet
	@.venv/bin/ruff format

# A marker for one accelerator goes when .venv is made for another: their packages do not mix.
.venv/for-$(ACCELERATOR):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "trpo-brax needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is none of them: try make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module: install it first (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/installed: .venv/for-$(ACCELERATOR) $(requirements) pyproject.toml
	@echo "Installing $(requirements) into .venv: minutes the first time." >&2
	@$(pip_install) $(pinned) $(requirements)
	@$(pip_install) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/installed-dev: .venv/installed requirements/dev.txt
	@echo "Installing requirements/dev.txt into .venv." >&2
	@$(pip_install) $(pinned) requirements/dev.txt
	@touch $@

# The largest set first; the others are held to its versions.
lock:
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install --quiet uv==$(UV_VERSION) && \
	compile() { \
	  "$$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	    --python "$$tools/bin/python" --no-python-downloads --no-emit-index-url --no-annotate \
	    --custom-compile-command "make lock" $(LOCK) pyproject.toml requirements/build.in "$$@"; } && \
	compile --extra dev -o requirements/dev.txt && \
	compile -c requirements/dev.txt -o requirements/base.txt && \
	compile -c requirements/dev.txt --extra cuda12 -o requirements/cuda12.txt && \
	compile -c requirements/dev.txt --extra cuda13 -o requirements/cuda13.txt

# --strict: without it a package that could not be looked up counts as sound.
audit:
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install --quiet pip-audit==$(PIP_AUDIT_VERSION) && \
	"$$tools/bin/pip-audit" --strict --progress-spinner off --require-hashes --disable-pip \
	  --requirement requirements/base.txt --requirement requirements/dev.txt

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
