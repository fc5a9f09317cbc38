# `make install` makes .venv; every other target calls it first and is quick when nothing changed.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Neighbours share a process and the services that they start; many wait for those, hence three for two cores.
TOGETHER := -n 3 --dist worksteal
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# The tests start a hundred processes: what is compiled once is kept, wherever that is usually switched off.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-all fuzz check format docs bench toy clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/glassworks demo --out demo

test: install
	$(BIN)/pytest $(TOGETHER) -m "not slow and not gpu"

test-all: install
	$(BIN)/pytest $(TOGETHER)

fuzz: install
	$(BIN)/python tests/fuzz_codec.py -max_total_time=600 -max_len=8192 -rss_limit_mb=1024 -timeout=10

check: install
	$(BIN)/ruff format --check src tests tools examples benchmarks
	$(BIN)/ruff check src tests tools examples benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format src tests tools examples benchmarks
	$(BIN)/ruff check --fix src tests tools examples benchmarks

docs: install
	$(BIN)/python tools/write_docs.py
	$(BIN)/python tools/write_tour.py

bench: install
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/overhead.py --out benchmarks/results

toy: install
	$(BIN)/python tools/train_toy.py

clean:
	rm -rf $(VENV) demo build dist
