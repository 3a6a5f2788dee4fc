# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first.
#
#   PYTHON   the interpreter that makes .venv (3.10 or newer)
#   TORCH    a torch to install first, such as TORCH='torch==2.13.0'; by default the newest that pip finds
#   RUNS     where the demo keeps its runs

PYTHON ?= python3
TORCH  ?=
RUNS   ?= runs
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Processes of one thread each: on small networks more threads only wait for each other.
PROCESSES := $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1); [ $$n -gt 4 ] && echo 4 || echo $$n)
ON_CPU := $(if $(filter-out 1,$(PROCESSES)),--trainer.accelerator cpu --trainer.devices $(PROCESSES) --trainer.strategy ddp,--trainer.accelerator cpu)

.PHONY: demo test lint install install-dev clean
.SECONDARY:

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(if $(TORCH),$(PIP) "$(TORCH)")
	$(PIP) --editable . $(if $(TORCH),"$(TORCH)")
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable ".[dev]" $(if $(TORCH),"$(TORCH)")
	@touch $@

install: .venv/installed
install-dev: .venv/installed-dev

TRAINED := $(RUNS)/train/digits_classifier/weights.safetensors $(RUNS)/train/digits_diffusion/weights.safetensors
DENOISER_digits_diffpure := --model.purifier.denoiser.weights $(RUNS)/train/digits_diffusion/weights.safetensors

$(RUNS)/train/%/weights.safetensors: configs/train/%.yaml | .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python cli.py fit -c $< --trainer.accelerator cpu --trainer.default_root_dir $(RUNS)/train/$*

$(RUNS)/eval/%/card.json: configs/eval/%.yaml $(TRAINED)
	OMP_NUM_THREADS=1 $(BIN)/python cli.py test -c $< --data.num_test 200 --trainer.default_root_dir $(RUNS)/eval/$* \
	  --model.classifier.weights $(RUNS)/train/digits_classifier/weights.safetensors $(DENOISER_$*) $(ON_CPU)

# The two trainings take a core each.
.PHONY: trained
trained: .venv/installed
	@$(MAKE) --no-print-directory -j2 $(TRAINED)

demo: trained $(RUNS)/eval/digits_undefended/card.json $(RUNS)/eval/digits_diffpure/card.json
	@OMP_NUM_THREADS=1 $(BIN)/python cli.py report $(RUNS)/eval/digits_undefended $(RUNS)/eval/digits_diffpure --output $(RUNS)/report
	@echo "The same numbers with figures: $(RUNS)/report/report.md"
	@echo "Images before and after:       $(RUNS)/eval/digits_diffpure/panels.png"
	@echo "TensorBoard:                   $(BIN)/tensorboard --logdir $(RUNS)"

test: .venv/installed-dev
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv build *.egg-info
