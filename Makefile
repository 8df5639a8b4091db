# make quickstart   the whole pipeline on scikit-learn's digits: no network, no downloads once installed
# make test         the whole test suite
# make lint         ruff and mypy
# make bench        training beside two recipes on photographs, half an hour: writes docs/benchmarks.md
# make bench-serve  the endpoint beside three others, half an hour: likewise
# make soak         what the endpoint and retraining withstand, two hours: writes docs/reliability.md
PYTHON ?= python3.11
GRAFT := .venv/bin/graft

.PHONY: quickstart test lint bench bench-serve soak clean

quickstart: .venv/installed
	$(GRAFT) run configs/digits-0-4.yaml
	$(GRAFT) run configs/digits-5-9.yaml

test: .venv/installed
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	KERAS_HOME="$${KERAS_HOME:-../shared/keras}" .venv/bin/python -m benchmarks.bench

bench-serve: .venv/installed .venv-rivals/installed
	KERAS_HOME="$${KERAS_HOME:-../shared/keras}" .venv/bin/python -m benchmarks.serve

soak: .venv/installed
	KERAS_HOME="$${KERAS_HOME:-../shared/keras}" .venv/bin/python -m benchmarks.soak
	KERAS_HOME="$${KERAS_HOME:-../shared/keras}" .venv/bin/python -m benchmarks.reliability

.venv-rivals/installed: benchmarks/rivals/requirements.txt
	$(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/rivals/requirements.txt
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-rivals build *.egg-info runs export
