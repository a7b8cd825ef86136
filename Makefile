# Every target that needs it sets the project up first: `make demo` or `make test` is all a fresh machine is asked.
#
#   make test PYTHON=python3.12     another interpreter (3.10 or newer) for the environment
#   make test PY=python3            no environment: an interpreter that already holds everything
#   make test ARGS='-k budgets -x'  more arguments for pytest, or for `kvcompress demo`
#   make test WORKERS=0             in one process; the default is one per processor, at most four
#   make bench-gpu GPU_RESULTS=out  write the JSON there, not to bench/results

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= logical
GPU_RESULTS ?=
BENCH_JSON ?= bench/results/pytest-benchmark.json

# Other versions of transformers that are tested too; their packages shadow the ones of the environment. Policies that
# take the same road through the engine as another one are left out there.
COMPAT = 5.17 5.24
COMPAT_TESTS = tests/kvcompress/engine tests/kvcompress/policies tests/analysis/capture -m "not slow" \
  -k "not (snapkv] or snapkv-large] or random] or h2o] or adakv] or defensivekv] or ratio-0] or keep-prompt])"

PACKAGES = kernels kvcompress analysis bench
GUARDS = tests/test_layout.py tests/test_imports.py tests/test_house.py

ifeq ($(origin PY),command line)
READY =
KVCOMPRESS = $(PY) -c 'from kvcompress.cli import main; main()'
else
PY = $(VENV)/bin/python
READY = $(VENV)/.ready
KVCOMPRESS = $(VENV)/bin/kvcompress
endif

# Parallel runs spread the tests over processes; conftest.py gives each worker one torch thread and, where other tests
# run too, puts all those marked gpu into one worker. The benchmark plug-in cannot time anything there, so it is off.
PYTEST = $(PY) -m pytest
PARALLEL = -n $(WORKERS) --maxprocesses=4 --dist loadgroup --benchmark-disable

# Fails with one line where there is no GPU: a run that skips everything looks too much like one that passes.
NEED_GPU = @$(PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
  "make $@: there is no CUDA device here (torch.cuda.is_available() is False)")'
GPU_TESTS = $(shell grep -rlE --include='test_*.py' 'mark\.gpu' tests)

# Tests of the engine that also run on the interpreted kernels, which takes each a hundred times as long: one or more of
# every file, listed in the file named here.
ON_KERNELS = $(shell sed -n 's/^  *\(test_[^ ]*\)$$/\1/p' tests/kernels/engine_on_kernels.txt | paste -sd'|' - | sed 's/|/ or /g')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-compat test-gpu fmt lint types aot bench bench-gpu build clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## run the whole engine on the bundled model, on whatever this machine has
	$(KVCOMPRESS) demo $(ARGS)

# The interpreter of Triton has to be chosen before Triton is imported, hence separate processes. The main suite comes
# last, so that its summary closes the output; all of them run, and any one failing fails the target.
test: $(READY)  ## run all the tests; those marked gpu run where there is a CUDA device
	@status=0; \
	noted() { "$$@" || { code=$$?; [ $$code -eq 5 ] || status=$$code; }; }; \
	echo "== tests of the kernels in Triton's interpreter (CPU)"; \
	noted env TRITON_INTERPRET=1 $(PYTEST) -m "interpret and not gpu" -q $(PARALLEL) $(ARGS); \
	echo "== tests of the engine on those kernels"; \
	noted env TRITON_INTERPRET=1 KVCOMPRESS_BACKEND=triton $(PYTEST) tests/kvcompress/engine -q $(PARALLEL) $(ARGS) \
	  -m "not gpu" -k "$(ON_KERNELS)"; \
	echo "== main suite"; \
	$(PYTEST) -m "not interpret" $(PARALLEL) $(ARGS) || exit $$?; \
	if [ $$status -ne 0 ]; then echo "the interpreted kernel tests above failed (pytest exit $$status)"; fi; \
	exit $$status

fmt: $(READY)  ## format the code and apply the safe fixes
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

test-compat: $(READY) $(COMPAT:%=$(VENV)/transformers-%/.ready)  ## run the tests of engine and capture on transformers 5.17 and 5.24
	@for version in $(COMPAT); do \
	  echo "== transformers $$version"; \
	  PYTHONPATH=$(VENV)/transformers-$$version $(PYTEST) $(COMPAT_TESTS) -q $(PARALLEL) $(ARGS) || exit $$?; \
	done

# Most of their time is spent compiling, so several processes share the GPU. Each test is named as it ends (-v): a run
# that is cut short has no summary.
test-gpu: $(READY)  ## run the tests that need a GPU, the long loops that look for races among them
	$(NEED_GPU)
	$(PYTEST) -m gpu -v $(GPU_TESTS) -n $(WORKERS) --maxprocesses=12 --dist load --benchmark-disable $(ARGS)

lint: $(READY)  ## check style and format, and run the guards of the layout
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PYTEST) -q -m "not slow" $(GUARDS)

types: $(READY)  ## check the types (mypy, strict)
	$(PY) -m mypy

aot: $(READY)  ## compile every kernel for the supported GPUs; needs no GPU
	$(PY) -m kvcompress.kernels.aot $(ARGS)

bench: $(READY)  ## run the benchmarks and write their JSON to bench/results
	@mkdir -p $(dir $(BENCH_JSON))
	$(PYTEST) bench --benchmark-only --benchmark-json=$(BENCH_JSON) $(ARGS)

bench-gpu: $(READY)  ## time the kernels and a whole model on a GPU and write their JSON
	$(NEED_GPU)
	@status=0; \
	$(KVCOMPRESS) bench kernels $(if $(GPU_RESULTS),--out $(GPU_RESULTS)/kernels.json) $(ARGS) || status=$$?; \
	$(PY) -m kvcompress.bench.gpu_end_to_end $(if $(GPU_RESULTS),--out $(GPU_RESULTS)/gpu_end_to_end.json) || status=$$?; \
	exit $$status

build: $(READY)  ## build the source archive and the wheel into dist
	rm -rf build dist *.egg-info
	$(PY) -m build --no-isolation

clean:  ## remove caches and build outputs; the environment stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find $(PACKAGES) tests -type d -name __pycache__ -prune -exec rm -rf {} +

# A second run starts at once: the stamp is only older than these two files when one of them has changed. The build
# back end is installed first, so that no isolated build fetches another version of it than the pinned one.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is missing or older than 3.10; choose another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || \
	  $(VENV)/bin/python -m ensurepip >/dev/null 2>&1 || rm -rf $(VENV)
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "hint: $(PYTHON) has no working venv; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/transformers-%/.ready: constraints-transformers-%.txt $(READY)
	rm -rf $(@D)
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@
