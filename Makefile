# A table of contents: every target calls a script in scripts/.
.DEFAULT_GOAL := help
.PHONY: help venv install demo test test-arm lint types format wheel bench clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

venv: ## Create .venv with the build tools in it.
	@scripts/setup build

install: ## Build and install vitlet with all extras and the developers' tools.
	@scripts/setup dev

demo: ## Export, prove, measure and run the built-in model.
	@scripts/setup demo
	.venv/bin/vitlet demo

test: ## Everything that CI runs: lint, types, format, tests.
	@scripts/system-packages
	@scripts/setup dev
	@scripts/check
	@scripts/test
	@scripts/test-arm

test-arm: ## The part of it for 64-bit ARM: cross-built, in an emulator.
	@scripts/system-packages
	@scripts/setup dev
	@scripts/test-arm

lint: ## Ruff's rules.
	@scripts/setup dev
	@scripts/check lint

types: ## mypy, strict.
	@scripts/setup dev
	@scripts/check types

format: ## Rewrite Python and C++ files in the house style.
	@scripts/setup dev
	@scripts/format

wheel: ## Build an sdist and a wheel into dist/.
	@scripts/setup dev
	@scripts/wheel

bench: ## Run the benchmarks; results go to benchmarks/results/.
	@scripts/setup dev
	@scripts/bench

clean: ## Remove what was built; .venv stays.
	rm -rf build dist wheelhouse vitlet-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
