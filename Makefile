PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One worker per core, one thread in each: BLAS threads of several workers wait for each other's cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: run test fast bench check format proto clean

run: $(VENV)/.installed  ## install and learn five tasks across ten clients
	$(BIN)/perennial run examples/digits.toml

test: $(VENV)/.installed-test  ## the whole suite
	$(PYTEST)

fast: $(VENV)/.installed-test  ## what takes under three minutes on two cores
	$(PYTEST) -m "not slow and not e2e"

bench: $(VENV)/.installed-test  ## measure all or ONLY="CASE …", one table in build/benchmarks
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

check: $(VENV)/.installed-dev  ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/.installed-dev  ## generate the trainer's gRPC code from its interface
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
		clients/proto/trainer.proto

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

clean:
	rm -rf $(VENV) build dist *.egg-info
