PYTHON ?= python3
UV = .tools/uv/bin/uv

.DEFAULT_GOAL = help
.PHONY: help setup test check demo bench bench-memory bench-peers bench-scaling matrix wheel lock clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

setup: ## all that is needed, pinned and checked, into .venv, .tools and .jars
	@$(PYTHON) -c 'import sys; sys.exit("setup: $(PYTHON) is older than 3.11: name another, as in make setup PYTHON=python3.12" \
		if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) tools/setup.py

test: setup ## all tests but the slow ones
	@.venv/bin/pytest

check: setup ## format, lint, types (of Python 3.11, and of 3.12, which Databricks' runtimes have)
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/mypy --python-version 3.12

demo: setup ## 200 prompts against the simulator, no key needed
	@.venv/bin/python -m deltatap.demo

bench: setup ## measure speed and the honesty of the times
	@.venv/bin/python -m bench

bench-memory: setup ## a worker's memory with many requests, long answers, large prompts
	@.venv/bin/python -m bench.memory

bench-peers: setup ## the same load with guidellm and aiperf, installed at the first run (7 GB)
	@.venv/bin/python -m bench.peers

bench-scaling: setup ## what 1, 2 and 4 workers carry, and what journal and driver cost
	@.venv/bin/python -m bench.scaling

matrix: setup ## the quick Spark tests with each Spark and pandas of Databricks' runtimes
	@.venv/bin/python tools/matrix.py

wheel: setup ## dist/deltatap-*.whl, vocabularies inside
	@$(UV) build --quiet --wheel --no-build-isolation --python .venv/bin/python --out-dir dist .
	@ls dist/*.whl

lock: setup ## requirements.lock anew, from pyproject.toml
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" \
		--extra spark --extra azure --extra databricks --extra report --extra serve \
		--group dev --constraint tools/pins/spark.txt pyproject.toml -o requirements.lock

clean: ## remove what set-up and the runs made here
	rm -rf .venv .tools .jars .mypy_cache .ruff_cache .pytest_cache .hypothesis dist data artifacts spark-warehouse \
		src/deltatap/vocabularies
