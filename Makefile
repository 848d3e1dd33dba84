# A developer's day in a few commands. Everything made lands in build/ and models/; nothing is
# installed outside build/venv but what apt-get brings when run as root on a bare machine.
#
#   make demo     install, fetch a real model, stream an answer through three levels
#   make test     every test; SUITES="cpp python layering asan tsan fuzz" picks some
#   make lint     clang-format and ruff look at all files, as pre-commit runs them
#   make format   the same two rewrite the files
#   make bench    plain decoding and hierarchies side by side on the real model
#   make clean    remove build/ (models/ stays)

VENV   := build/venv
PY     := $(VENV)/bin/python
MODEL  := models/SmolLM2-135M-Instruct
SUITES ?=
# What the package is made of: any of it changing means another install.
SOURCES := CMakeLists.txt pyproject.toml $(shell find engine bindings python third_party bench \
  -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.c' -o -name '*.py' -o -name '*.cmake' -o -name '*.in' -o -name CMakeLists.txt \))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint format bench clean model
.DELETE_ON_ERROR:

$(VENV)/.ready: pyproject.toml .ci/setup
	.ci/setup
	@touch $@

$(VENV)/.installed: $(VENV)/.ready $(SOURCES)
	@echo "building and installing stepladder into $(VENV) (some minutes the first time)"
	$(PY) -m pip install -q --no-build-isolation -C build-dir=build/wheel .
	@touch $@

demo: $(VENV)/.installed
	$(PY) bench/demo.py --model $(MODEL)

model: $(MODEL)/config.json
$(MODEL)/config.json: | $(VENV)/.installed
	$(PY) bench/smollm2.py $(MODEL)

# The C++ bench measures the machine and the engine on it, the Python one real questions.
bench: model
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH && cmake --preset release -DPython3_EXECUTABLE=$(CURDIR)/$(PY) >/dev/null \
	  && cmake --build --preset release --target stepladder-bench
	build/release/bench/stepladder-bench $(MODEL) --draft "cast:int8:shared,lookup" --json build/bench.jsonl
	$(VENV)/bin/stepladder bench $(MODEL) --draft lookup --draft "cast:int8:shared,lookup" --max-tokens 128

test: $(VENV)/.ready
	$(PY) tests/run.py $(SUITES)

$(VENV)/.lint: $(VENV)/.ready
	$(PY) -m pip install -q "pre-commit==4.6.0"
	@touch $@

lint: $(VENV)/.lint
	$(PY) -m pre_commit run --all-files

format: $(VENV)/.lint
	-$(PY) -m pre_commit run --all-files --hook-stage manual

clean:
	rm -rf build
