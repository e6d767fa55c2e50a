# Everything a person types here. Each target makes what it needs; the second time it is quick.

VENV := .venv
BIN := $(VENV)/bin

# The interpreter that makes the virtual environment: the versions that pyproject.toml allows, the tested one first.
PYTHON ?= $(shell for name in python3.11 python3 python3.12; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$name && break; done)

# The stamp is named by what was installed, so a changed pyproject.toml or constraints.txt installs again and nothing else does.
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c 1-16)

# The rooms lie in the checkout and are imported from there; installing the project as well would be a second copy that
# can win. So only what it needs is installed: the dependencies, and the extras of training (torch, 1 GB) and development.
REQUIREMENTS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["dependencies"], *sum(project["optional-dependencies"].values(), []), sep="\n")

# Debian packages are installed where that needs no password; elsewhere the tests that need them skip and say so.
AS_ROOT := $(shell command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] && echo env || \
	{ sudo -n true 2>/dev/null && echo sudo; }; })
APT := $(AS_ROOT) DEBIAN_FRONTEND=noninteractive apt-get

QUICK := not slow and not ray and not browser and not chaos and not gpu
DEMO_FLAGS ?=
TOUR_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo tour test check format bench chaos chromium java clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the tested set of versions (once, 2 to 3 minutes)

$(STAMP):
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c '' || { echo "no Python 3.11 or 3.12 found; install one, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ -n "$(AS_ROOT)" ] && \
		$(APT) update -qq && $(APT) install -y -qq python3-venv; } || \
		{ echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "setup: installing into $(VENV); this takes two or three minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c '$(REQUIREMENTS)' > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install -qq -c constraints.txt -r $(VENV)/requirements.txt
	@rm -f $(VENV)/installed-*
	@touch $@

demo: setup ## crawl a small web, download its images, write the report: out/demo/report.html
	@$(BIN)/python -m pipeline run pipeline/recipes/demo.yaml $(DEMO_FLAGS)
	@echo "Open out/demo/report.html in a browser. To begin anew: make clean demo"

tour: demo java ## the demo, then BLIP's loop and a DALL-E on it: out/demo/bootstrap.html, out/demo/draw.html
	@$(BIN)/python -m pipeline run pipeline/recipes/bootstrap.yaml $(TOUR_FLAGS)
	@$(BIN)/python -m pipeline run pipeline/recipes/draw.yaml $(TOUR_FLAGS)
	@echo "Open out/demo/bootstrap.html and out/demo/draw.html in a browser."

# Two processes: tests that start processes of their own, and slow ones, each go through one of them in turn; quick ones fill both.
test: setup chromium java ## every test, in under 25 minutes on 2 cores
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup ## ruff, types and the quick tests, under four minutes on 2 cores
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -n 2 -m "$(QUICK)"

format: setup ## mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup ## the benchmarks and how to start each
	@for file in benchmarks/*.py; do \
		name=$$(basename $$file .py); \
		printf '$(BIN)/python -m benchmarks.%s\n    ' $$name; \
		$(BIN)/python -c 'import ast, sys; print(ast.get_docstring(ast.parse(open(sys.argv[1]).read())).splitlines()[0])' $$file; \
	done

chaos: setup ## kill drivers, workers and nodes 50 times at random moments
	@PAIRMILL_CHAOS=50 $(BIN)/python -m pytest -m chaos --timeout 7200

chromium:
	@command -v chromium >/dev/null || { [ -n "$(AS_ROOT)" ] && \
		$(APT) update -qq && $(APT) install -y -qq --no-install-recommends chromium; } || \
		echo "chromium: not installed and cannot be from here; the tests that look at the report will skip"

java:
	@command -v java >/dev/null || { [ -n "$(AS_ROOT)" ] && \
		$(APT) update -qq && $(APT) install -y -qq --no-install-recommends default-jre-headless; } || \
		echo "java: not installed and cannot be from here; the tests of caption metrics will skip"

clean: ## remove what runs and tools have left; .venv and data/ stay
	@rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
