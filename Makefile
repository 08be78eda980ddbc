# `make help` lists the targets. Everything they write stays in this folder: .venv, .cache and runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache
PIP := $(BIN)/python -m pip --disable-pip-version-check

# pip's cache of downloads stays the user's own, where a second clone finds it.
ifndef PIP_CACHE_DIR
export PIP_CACHE_DIR := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pip
endif
export XDG_CACHE_HOME := $(CACHE)
export UNMASK_CACHE := $(CACHE)/unmask
export HF_HOME := $(CACHE)/huggingface
export MPLCONFIGDIR := $(CACHE)/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/torchinductor
export RUFF_CACHE_DIR := $(CACHE)/ruff
export PYRIGHT_PYTHON_CACHE_DIR := $(CACHE)/pyright
export PYTEST_DEBUG_TEMPROOT := $(CACHE)

# The engine of the demo: torch or mindspore.
ENGINE ?= torch

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-faults lint clean

help:
	@echo 'make demo    pretrain, fine-tune and compare on 5,000 real digits; make demo ENGINE=mindspore ARGS="seed=1"'
	@echo 'make test    what CI runs: ruff, pyright, pytest; options for pytest: make test ARGS="-k name"'
	@echo 'make test-all  the same and the campaigns, which take minutes each'
	@echo 'make test-faults  what docs/reliability.md promises, at length'
	@echo 'make lint    the part of it that runs nothing: ruff, pyright'
	@echo 'make clean   remove .venv, caches and build folders; keeps runs'
	@echo
	@echo 'PYTHON=python3.12 make ...   another Python (3.11 or newer) for a new .venv'
	@echo 'PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make ...   the small PyTorch, without CUDA'

demo: $(VENV)/.demo-$(ENGINE)
	$(BIN)/unmask demo engine=$(ENGINE) $(ARGS)

# In the order of the folders, as the slow files come before the many small ones of tests/unit.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --durations 20 $(ARGS)

test-all: ARGS := -m "campaign or not campaign" $(ARGS)
test-all: test

# What docs/reliability.md names, with the campaigns of minutes.
test-faults: ARGS := $(addprefix tests/,$(shell grep -oE '[a-z_/0-9]+\.py::' docs/reliability.md | sed 's/:://' | sort -u)) \
	-m "campaign or not campaign" $(ARGS)
test-faults: test

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright $$(test -d $(VENV)/lib/python*/site-packages/mindspore || \
		find src -name '*.py' ! -path '*/mindspore_engine/*' ! -path '*/models/mindspore_*')

clean:
	rm -rf $(VENV) $(CACHE) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis

# The stamps are renewed when the requirements change. What the tests need includes what the demo needs.
# MindSpore has no wheels for Python 3.13 yet: there the tests run without it.
comma := ,
TESTED = $(shell $(PYTHON) -c 'import sys; print("torch" if sys.version_info >= (3, 13) else "torch,mindspore")')
$(VENV)/.demo-$(ENGINE): EXTRAS := $(ENGINE),demo
$(VENV)/.test: EXTRAS = $(TESTED),demo,test
$(VENV)/.demo-$(ENGINE) $(VENV)/.test: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'unmask needs Python 3.11 or newer; name one: PYTHON=python3.12 make ...'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("mindspore" in "$(EXTRAS)" and sys.version_info >= (3, 13))' || \
		{ echo 'MindSpore has no wheels for Python 3.13 yet; name another: PYTHON=python3.12 make ...'; exit 1; }
	@case '$(EXTRAS)' in torch,demo,test) \
		echo 'MindSpore has no wheels for Python 3.13 yet: it is left out, and the tests that need it are skipped';; esac
	@echo 'Installing unmask[$(EXTRAS)] into $(VENV); the first time this takes a few minutes'
	@mkdir -p $(CACHE)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@ $(if $(findstring .test,$@),$(patsubst %,$(VENV)/.demo-%,$(filter torch mindspore,$(subst $(comma), ,$(EXTRAS)))))
