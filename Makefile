# make train          install into .venv if needed, then train on an embedded data set: no download, no GPU, 3 minutes
# make train CONFIG=configs/tiny1m.yaml ARGS="--optim.lr 0.3"     any configuration, on all GPUs of this machine
# make test           lint, unit and process tests: 6 minutes on 2 cores, no root, no cluster
# make test-faults    the long fault tests: 100 kills, every signal to every launcher, a full disk: 11 minutes
# make test-wandb     the tests against a W&B server and in Chromium (installed as root): 5 minutes
# make test-cluster   the tests on a real Slurm of three nodes on this machine: root, 20 minutes
# make test-cluster SLURM=24.11 TESTS="-m versions tests/cluster"    on Slurm 24.11, only four of the tests
# make test-gpu       what only a GPU can show, and its speed: 9 minutes; uses PYTHON if there is no .venv (docs/gpu.md)
# make chaos          random faults on two ranks here and on a Slurm job: root; MINUTES=60 SEED=7
# make install        .venv with the exact versions of constraints.txt
# make bench          images/s of the training loop against the bare network
# make clean          remove .venv

MINUTES ?= 10
SEED ?= 1
CONFIG ?= configs/smoke.yaml
ARGS ?=
SLURM =
TESTS = tests/cluster
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HAS_GPU := $(shell command -v nvidia-smi || command -v rocm-smi)
HAS_SEVERAL := import sys, torch; sys.exit(torch.cuda.device_count() < 2)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10) and "error: %s is Python %d.%d, too old: load a module with 3.10 or newer, or give make PYTHON=FILE" % (sys.executable, *sys.version_info[:2]))

.PHONY: help train install test test-wandb test-faults test-cluster test-gpu chaos lint bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

# A process per GPU. One process needs no launcher, whose warnings and tracebacks would bury the program's own sentences.
# train.precision of the configuration sets the precision; the flags of the launcher only keep it from asking.
train: $(VENV)/.installed
	@$(if $(HAS_GPU),if $(BIN)/python -c '$(HAS_SEVERAL)'; then exec $(BIN)/accelerate launch --quiet --multi_gpu \
		--num_machines 1 --mixed_precision no --dynamo_backend no train.py --config $(CONFIG) $(ARGS); fi; )exec \
		$(BIN)/python train.py --config $(CONFIG) $(ARGS)

install: $(VENV)/.installed
	@echo 'Installed. Next: source $(BIN)/activate && tinyimnet --help'

test: lint
	$(BIN)/python -m pytest tests/unit tests/process -m "not long" -n 2 --dist worksteal  # most tests use one core

# Against the tests' own W&B server; Chromium is Debian's.
test-wandb: $(VENV)/.installed-dev
	command -v chromium >/dev/null || { apt-get update; apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; }
	$(BIN)/python -m pytest tests/wandb -rs -n 3 --dist loadfile  # they mostly wait

# As root: installs Slurm's Debian packages, starts a cluster per worker and stops it. SLURM=24.11 unpacks that version
# below /var/cache; the default is the version of the machine's Debian.
test-cluster: export CLUSTER_SLURM = $(SLURM)
test-cluster: $(VENV)/.installed-dev
	tests/cluster/cluster.sh install
	shellcheck slurm/*.sbatch slurm/setup_job.sh slurm/site.env.example tests/cluster/cluster.sh .ci/run
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(TESTS) -n 2 --dist worksteal

# As root, the full disk is a small tmpfs. FAULTS_SEED=N draws other moments for the kills.
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/process -m long -n 2 --dist worksteal

# Without .venv, a Python that has torch for CUDA: no network is needed.
test-gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tests/gpu/check.py --out runs/gpu_check

# As root. Prints each fault; a failed round names the seed that repeats it.
chaos: $(VENV)/.installed-dev
	tests/cluster/cluster.sh install
	PATH="$(CURDIR)/$(BIN):$$PATH" CHAOS_MINUTES=$(MINUTES) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest tests/chaos -s

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/throughput.py $(ARGS)

clean:
	rm -rf $(VENV)

# Rebuild a .venv whose Python is too old or gone.
ifneq ($(shell $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && echo works),works)
.PHONY: $(VENV)/.installed
endif
$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || { $(PYTHON) -c '$(NEW_ENOUGH)' && $(PYTHON) -m venv --clear $(VENV); }
	@echo 'Installing torch and 60 packages into $(VENV): one to five minutes (1.3 GB; with CUDA 5.8 GB).'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
