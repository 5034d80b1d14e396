PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
MINUTES ?= 8  # of `make gpu`
JOBS ?= 3  # of tests: one more than the usual two cores, for tests often wait

# Without DATA or PHOTOS nothing is installed: the line says what to give.
.PHONY: demo photos real claims test bench gpu kill races lint format lab clean

demo: $(READY)  ## the notebooks 00-07 on the embedded dataset, the claims table, the comparison with outputs/reference/
	$(BIN)/python -m mgkit.demo

ifeq ($(strip $(DATA)),)
real:
	$(error real: where are the photographs? make real DATA=/folder with images of ImageNet's classes, Holidays or UKBench)
else
real: $(READY)  ## 02-05 on a real network and the photographs in DATA, compared with outputs/reference/real
	@$(BIN)/python -m mgkit.demo.real --data "$$DATA" $(REAL)
endif

claims: $(READY)  ## go on with 07's run in outputs/reference/claims, on data/imagenette and data/real; CLAIMS="--hours 2"
	$(BIN)/python -m mgkit.demo.claims_reference $(CLAIMS)

ifeq ($(strip $(PHOTOS)),)
photos:
	$(error photos: where are your pictures? make photos PHOTOS=~/Pictures, or PHOTOS="~/Pictures; /mnt/phone"; with AGAINST=/mnt/backup, are they there already?)
else
photos: $(READY)  ## 06 on the pictures in PHOTOS, as in PHOTOS=~/Pictures or PHOTOS="~/Pictures; /mnt/phone"; AGAINST=/mnt/backup: are they there?
	@$(BIN)/python -m mgkit.photos --against="$$AGAINST" -- "$$PHOTOS"
endif

test: export PYTHONDONTWRITEBYTECODE :=  # processes that tests start need not compile the kit
test: $(READY)  ## the whole test suite, in JOBS processes
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

bench: $(READY)  ## every stage beside its floor: a table, and bench.json and bench.png in outputs/bench/
	$(BIN)/python tests/bench/run.py

gpu: $(READY)  ## on one CUDA device, in MINUTES: what no GPU has run yet, in one table; GPU=--tiny: a try on the CPU
	@PYTHONPATH=tests/bench $(BIN)/python -m gpu.run --minutes $(MINUTES) $(GPU)

kill: $(READY)  ## trainings that are killed at random moments and go on: the same weights, bit for bit?
	$(BIN)/python tests/bench/kill_training.py --runs 20

races: $(READY)  ## two runs of each stage at once, at random moments: does each folder hold the results of its config?
	$(BIN)/python tests/bench/two_runs.py --runs 20

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lab: export JUPYTER_CONFIG_PATH := $(CURDIR)/.jupyter$(addprefix :,$(JUPYTER_CONFIG_PATH))
lab: $(READY)  ## the notebooks in JupyterLab; LAB: more options for it, as in LAB="--no-browser --port 9000"
	$(BIN)/jupyter lab --notebook-dir notebooks --LabApp.default_url /lab/tree/00_start_here.ipynb $(LAB)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else 'Python 3.10 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:  ## remove the environment and the generated images and indices; outputs/ stays
	rm -rf $(VENV) data/mini data/photographs data/.index
