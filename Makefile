PYTHON ?= python3
UV = .tools/uv/bin/uv
# Each test process has a separate Spark session of about 1 GB. Slow tests often wait for other processes, so three test
# processes keep two cores busy.
SIDE_BY_SIDE = --numprocesses=logical --maxprocesses=4 --dist=worksteal
SLOW_SIDE_BY_SIDE = --numprocesses=3 --dist=worksteal

# Where this variable is set, every process compiles every module again that it imports. That doubles its start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL = help
.PHONY: help setup test test-slow check docs demo bench bench-memory bench-peers bench-scaling matrix wheel lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

setup: ## install everything, pinned and verified, into .venv, .tools and .jars
	@$(PYTHON) -c 'import sys; sys.exit("setup: $(PYTHON) is older than 3.11: choose another one, for example make setup PYTHON=python3.12" \
		if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) tools/setup.py

# Some slow tests need programs that setup does not install. Without these, test-slow leaves the tests out and says so.
MISSING = $(if $(shell command -v cc),,compiler) $(if $(shell command -v chromium),,chromium) $(if $(and $(wildcard tests/node/node_modules/openai),$(wildcard examples/front-end/node_modules/@langchain/anthropic)),,node)
SELECTED = $(foreach marker,$(MISSING), and not $(marker))
# Each process collects the tests by itself, so it gets only the files that have slow ones.
SLOW_FILES = $(shell grep -rl --include='test_*.py' 'mark\.slow' tests | sort)

test: setup ## all tests but the slow ones
	@.venv/bin/pytest $(SIDE_BY_SIDE)

test-slow: setup ## the slow tests: most captures, kills, faults, clusters of processes
	@$(foreach marker,$(MISSING),echo "test-slow: leaving out the tests that need $(marker) (see docs/contributing.md)";)
	@.venv/bin/python -m tests.classes
	@.venv/bin/pytest $(SLOW_SIDE_BY_SIDE) -m "slow$(SELECTED)" --durations=20 $(SLOW_FILES)

check: setup ## check format, lint and types (for Python 3.11, and for 3.12, which Databricks runtimes use)
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/mypy --python-version 3.12

docs: setup ## update the generated tables in docs/*.md
	@.venv/bin/python tools/docs.py

demo: setup ## capture 200 prompts from the simulator and open a report; needs no key. WATCH=1 shows the run in a browser
	@.venv/bin/python -m deltatap.demo $(if $(WATCH),--watch)

bench: setup ## measure the speed and the accuracy of the latencies
	@.venv/bin/python -m bench

bench-memory: setup ## measure a worker's memory with many requests, long answers and large prompts
	@.venv/bin/python -m bench.memory

bench-peers: setup ## run the same load with guidellm and aiperf; the first run installs them (7 GB)
	@.venv/bin/python -m bench.peers

bench-scaling: setup ## measure the load that 1, 2 and 4 workers handle, and the cost of journal and driver
	@.venv/bin/python -m bench.scaling

matrix: setup ## run the quick Spark tests with each Spark and pandas version of Databricks runtimes
	@.venv/bin/python tools/matrix.py

wheel: setup ## build dist/deltatap-*.whl, with the vocabularies
	@$(UV) build --quiet --wheel --no-build-isolation --python .venv/bin/python --out-dir dist .
	@ls dist/*.whl

lock: setup ## update requirements.lock from pyproject.toml
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" \
		--extra spark --extra local --extra azure --extra databricks --extra report --extra serve --extra otel \
		--group dev --constraint tools/pins/spark.txt pyproject.toml -o requirements.lock

clean: ## remove everything that setup and runs created
	rm -rf .venv .tools .jars .mypy_cache .ruff_cache .pytest_cache .hypothesis dist data artifacts spark-warehouse \
		src/deltatap/vocabularies
