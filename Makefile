# Each target does all the set-up that it needs, on a machine with Python 3.11, pip and make.
.DEFAULT_GOAL := help
.PHONY: help setup machine quickstart test check audit bench clean

# Bytecode that is not written is compiled again by every process that the tests start.
unexport PYTHONDONTWRITEBYTECODE

UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := $(UV) run --no-sync

help:
	@echo "make quickstart   run the example on a fake cloud, on both providers"
	@echo "make test         every check and every test"
	@echo "make check        formatting, types, import floors"
	@echo "make audit        what is known against the packages of uv.lock"
	@echo "make bench        the benchmarks, side by side with their peers"

setup: .venv/.synced

.venv/.synced: uv.lock pyproject.toml
	@command -v uv >/dev/null 2>&1 || test -x .tools/bin/uv || sh tools/get_uv.sh
	$(UV) sync --locked --quiet --compile-bytecode
	@touch $@

# What the tests want of the system: an OpenSSH server to compare with, and what isolates the fake's machines.
machine:
	@sh tools/get_system_packages.sh

quickstart: setup
	@$(RUN) python tools/quickstart.py

check: setup
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports

test: setup machine check
	$(RUN) pytest -n 3 --dist loadgroup --durations=25 -m "not scale"
	$(RUN) pytest -m scale

audit: setup
	$(RUN) python tools/audit.py

BENCHMARKS := $(filter-out benchmarks/fleet_peers.py benchmarks/prefect_place.py,$(wildcard benchmarks/*.py)) # less parts of others

bench: setup
	@for file in $(BENCHMARKS); do echo "== $$file"; $(RUN) python $$file || exit; done

clean:
	rm -rf .venv .tools
