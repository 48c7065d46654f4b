# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
V := .venv/bin
SUITE ?= trixie

.PHONY: help build test lint sanitize bench gate lab demo wheels deb walk
help:
	@sed -n 's/^| `make \([a-z]*\)` |/make \1\t|/p' CONTRIBUTING.md

.venv/ready: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(V)/pip install -q -e '.[test,lint,build]'
	touch $@

build: .venv/ready
	$(V)/pip install -q -e '.[test,lint,build]'

test: .venv/ready
	$(V)/pytest

lint: .venv/ready
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/mypy
	$(V)/mypy --strict tests/typing
	$(V)/stubtest hvring --mypy-config-file pyproject.toml --concise --allowlist tests/typing/stubtest.allow
	PATH=$(V):$$PATH $(V)/cython-lint hvring
	$(V)/lint-imports

sanitize: .venv/ready
	tests/sanitize.sh $(V)/python

bench: .venv/ready
	$(V)/pip install -q -e '.[bench]'
	$(V)/python benchmarks/report.py

gate: .venv/ready
	$(V)/python benchmarks/gate.py

lab: .venv/ready
	tests/vm/run.py

demo: .venv/ready
	$(V)/hvring demo

wheels: .venv/ready
	packaging/wheels/build.py --out dist $(V)/python

deb: .venv/ready
	PYTHON=$(CURDIR)/$(V)/python packaging/build-deb $(SUITE) build/$(SUITE)

walk: deb
	PYTHON=$(CURDIR)/$(V)/python packaging/walk/run $(SUITE) build/$(SUITE)
