# make quickstart   the whole pipeline on scikit-learn's digits: no network, no downloads once installed
# make test         the whole test suite
# make lint         ruff and mypy
# make bench        Graft beside two recipes on photographs, half an hour: writes docs/benchmarks.md
PYTHON ?= python3.11
GRAFT := .venv/bin/graft

.PHONY: quickstart test lint bench clean

quickstart: .venv/installed
	$(GRAFT) run configs/digits-0-4.yaml
	$(GRAFT) run configs/digits-5-9.yaml

test: .venv/installed
	.venv/bin/python -m pytest --numprocesses 2 $(PYTEST_ARGS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	KERAS_HOME="$${KERAS_HOME:-../shared/keras}" .venv/bin/python -m benchmarks.bench

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info runs export
