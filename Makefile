PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,qm9,xtb
PARITY := allegro egnn mace nequip schnetpack se3_transformer torchmdnet

.PHONY: quickstart test lint types peers parity clean

quickstart: .venv/installed
	$(BIN)/pyg-equivariant quickstart

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 15

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg

types: .venv/installed
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

peers: .venv/installed
	$(BIN)/python -m benchmarks.environments $(PEERS)

parity: .venv/installed
	$(BIN)/python -m benchmarks.environments $(PARITY)
	for peer in $(PARITY); do PYTHONPATH=. benchmarks/.envs/$$peer/bin/python tests/parity/$$peer.py || exit 1; done

clean:
	rm -rf .venv benchmarks/.envs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
