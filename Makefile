# make train                                       .venv, requirements, then the main job on the embedded data set
# make train CONFIG=configs/tiny1m.yaml ARGS=...   the real thing, on all GPUs of this machine; ARGS go to train.py
# make test                                        lint, then the tests: minutes, no root, no cluster
# make test-faults                                 the long form: 100 kills, every signal, a full disk; the smoke run
# make test-wandb                                  the tests of W&B and of pages in Chromium; installs Chromium as root
# make test-cluster                                the tests on real Slurms of three nodes on this machine; root
# make install                                     .venv with the requirements, nothing else
# make bench ARGS=...                              images/s of the loop against bare arithmetic; ARGS as for train.py

CONFIG ?= configs/smoke.yaml
ARGS ?=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10) and "error: %s is Python %d.%d, too old: load a module with 3.10 or newer, or give make PYTHON=FILE" % (sys.executable, *sys.version_info[:2]))

.PHONY: train install test test-wandb test-faults test-cluster lint bench clean

# Precision is train.precision of the configuration: what is passed here only keeps the launcher quiet.
train: $(VENV)/.installed
	$(BIN)/accelerate launch --quiet --num_machines 1 --mixed_precision no --dynamo_backend no \
		train.py --config $(CONFIG) $(ARGS)

install: $(VENV)/.installed

test: lint
	$(BIN)/python -m pytest tests/unit tests/process -m "not long" -n 2 --dist worksteal  # most of it uses one core

# Against a W&B server of our own; pages in Chromium, which Debian has.
test-wandb: $(VENV)/.installed-dev
	command -v chromium >/dev/null || { apt-get update; apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; }
	$(BIN)/python -m pytest tests/wandb -rs -n 3 --dist loadfile  # they wait more than they compute

# As root: it installs Slurm's Debian packages, starts two clusters and ends them.
test-cluster: $(VENV)/.installed-dev
	tests/cluster/cluster.sh install
	shellcheck slurm/*.sbatch slurm/setup_job.sh slurm/site.env.example tests/cluster/cluster.sh .ci/run
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/cluster -n 2 --dist worksteal  # a cluster for each worker

# The full disk is a small tmpfs where this is root; FAULTS_SEED=N draws other moments.
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/process -m long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/throughput.py $(ARGS)

clean:
	rm -rf $(VENV)

# A .venv of a Python that is too old, or gone with a module, is made anew.
ifneq ($(shell $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && echo works),works)
.PHONY: $(VENV)/.installed
endif
$(VENV)/.installed: requirements.txt
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || { $(PYTHON) -c '$(NEW_ENOUGH)' && $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-dashboard.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@
