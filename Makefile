# Two commands do everything: `make demo` and `make test`. Both make .venv and install into it first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Without Material's notice of MkDocs' future: docs/decisions/0010-mkdocs-with-material.md says what we do about it.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

# `make gpu-check` installs into a venv of its own, because onnxruntime-gpu and onnxruntime are the same module.
# GPU_PYTHON names a Python that has what is to be checked already; then nothing is installed.
GPU_VENV := .venv-gpu
GPU_INSTALLED := $(GPU_VENV)/.installed

.PHONY: demo test test-slow check format docs site serve paper perf gpu-check clean

demo: $(INSTALLED)  ## the whole line on the built-in scenes, ending in demo/report.html
	$(BIN)/depthkit demo --out demo

test: check  ## linters, types, architecture, documentation, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)  ## what `make test` leaves out, because it takes minutes and shows what smaller tests show in part
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED) build/mypy/depthkit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/mypy && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p depthkit
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check
	$(BIN)/python docs/schema.py --check
	$(MKDOCS) build --strict  # not --quiet, which would let warnings pass

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## write docs/cli.md from the commands, and the schema of bench.json
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/schema.py

site: $(INSTALLED)  ## build the documentation into build/site; nothing is fetched (its search needs a server: `make serve`)
	$(MKDOCS) build --strict

serve: $(INSTALLED)  ## show the documentation at http://127.0.0.1:8000 and rebuild it at every change
	$(MKDOCS) serve

# With RUNS="…" NYU=… the numbers are measured first: accuracy once for all weights, and speed anew.
paper: $(INSTALLED)  ## write docs/results/paper.md from its committed numbers
	$(if $(RUNS),$(BIN)/python docs/results/paper.py measure --data $(NYU) $(RUNS))
	$(if $(RUNS),$(BIN)/python docs/results/paper.py time $(RUNS))
	$(BIN)/python docs/results/paper.py render

perf: $(INSTALLED)  ## speed, as ratios measured in one run
	failed=0; for part in perf perf_precision perf_train perf_bench perf_video perf_view perf_adopt perf_serve; do \
	  $(BIN)/python tests/$$part.py || failed=1; \
	done; exit $$failed

gpu-check: build/mypy/depthkit $(if $(GPU_PYTHON),,$(GPU_INSTALLED))  ## on a machine with a GPU: its tests and its bench
	PYTHONPATH=$(CURDIR)/build/mypy $(or $(GPU_PYTHON),$(GPU_VENV)/bin/python) tests/gpu_check.py

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# mypy finds a package by its folder's name, and a checkout may be called anything.
build/mypy/depthkit:
	mkdir -p $(@D) && ln -sfn ../.. $@

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "depthkit needs Python 3.10 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,cpu,openvino,tensorrt-rtx,video,serve,ray,test,docs]'
	touch $@

# Without constraints.txt, which was made without a GPU: torch chooses its own versions of CUDA's packages.
$(GPU_INSTALLED): pyproject.toml
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --editable '.[train,gpu,tensorrt-rtx,test]'
	$(GPU_VENV)/bin/python -m pip install --quiet --editable '.[tensorrt]' || \
	  echo "tensorrt cannot be installed (its libraries come from NVIDIA's own index); going on without it" >&2
	touch $@
