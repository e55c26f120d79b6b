# Everything a newcomer, a developer and the continuous integration run; `make` alone lists it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
export OMP_NUM_THREADS ?= 1

.PHONY: help quickstart test check nightly torture wheel bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Tunesmith needs Python 3.11 or newer; name yours with make PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing into .venv with $(PYTHON): a few minutes the first time."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(READY) ## fine-tune the starter model, before and after, in minutes
	@env -u OMP_NUM_THREADS $(BIN)/tunesmith quickstart

test: $(READY) ## the test suite: no GPU, no model hub, no shared data needed
	@$(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/house --durations 25 --durations-min 4 tests

check: $(READY) ## lint, format, types, house rules, code blocks of the docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/python -m pytest tests/house

nightly: $(READY) ## every test, the slow ones too
	@$(BIN)/python -m pytest -n 2 -m 'not gpu' --timeout 1800 tests

EVIDENCE := .torture.jsonl
torture: $(READY) ## break everything on purpose, then write docs/reference/reliability.md
	@rm -f $(EVIDENCE)
	@TUNESMITH_EVIDENCE=$(CURDIR)/$(EVIDENCE) $(BIN)/python -m pytest -n 2 --dist worksteal -m 'row and not gpu' --timeout 1800 tests
	@$(BIN)/python -m tests.torture_report $(EVIDENCE)

wheel: $(READY) ## build the committed sources into dist/, the same bytes every time, without a network
	@rm -rf build/wheel && mkdir -p build/wheel dist
	@git archive HEAD | tar -xp -C build/wheel
	@cd build/wheel && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CURDIR)/$(BIN)/python -c 'import setuptools.build_meta as made; print(made.build_wheel("$(CURDIR)/dist"))'

BENCH := env -u OMP_NUM_THREADS $(BIN)/python benchmarks
bench: $(READY) ## every table of docs/reference/benchmarks.md, hours; make bench DATA=FILE PAIRS=FILE FLAGS=...
	@$(BENCH)/sft.py $(DATA:%=--data %) $(FLAGS)
	@$(BENCH)/sft.py --work long $(FLAGS)
	@$(BENCH)/sft.py --tuning full $(DATA:%=--data %) $(FLAGS)
	@$(BENCH)/sft.py --tuning full --work long $(FLAGS)
	@$(BENCH)/sft.py --model qwen3-0.6b $(FLAGS)
	@$(BENCH)/sft.py --model qwen3-0.6b --work long --steps 1 $(FLAGS)
	@$(BENCH)/preference.py --method dpo $(PAIRS:%=--data %) $(FLAGS)
	@$(BENCH)/preference.py --method dpo --work long --epochs 3 $(FLAGS)
	@$(BENCH)/page.py
	@$(BENCH)/regress.py

clean: ## remove the virtual environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
