# The two commands: `make reproduce` for the results table, `make test` for the tests. `make help` lists the rest.
PROFILE ?= quick
PORT ?= 5000
PYTHON ?= $(firstword $(foreach python,python3.12 python3.11 python3,$(if $(shell $(python) -c 'import sys; print(int((3, 11) <= sys.version_info[:2] < (3, 13)) or "")' 2>/dev/null),$(python))))
BIN := .venv/bin
READY := .venv/ready

export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
# Threads that wait asleep: spinning ones slow a training on a shared machine twentyfold, and sleeping costs little.
export OMP_WAIT_POLICY := PASSIVE
# escnn takes the basis of its kernels from a singular value decomposition, which is free to turn within equal values: with the
# kernels that OpenBLAS picks by the processor, each kind of processor would start its trainings from another basis.
ifeq ($(shell uname -m),x86_64)
export OPENBLAS_CORETYPE := Haswell
endif

.PHONY: help setup reproduce test lint verify twice gate ui docs wheel campaigns profiles publish lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed 's/:.*## /|/' | while IFS='|' read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

setup: $(READY) ## install everything into .venv, exactly as locked (repairs an interrupted one)

# The stamp is written last, so whatever interrupts the installation, the next `make` starts it over.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or 3.12 is needed and none is on the PATH; install one or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@rm -f $(READY)
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

reproduce: $(READY) ## run the pipeline and print the results table (PROFILE=smoke|quick|full, JOBS=stages at once)
	@$(MAKE) --no-print-directory profiles
	@$(BIN)/python tools/reproduce.py $(PROFILE) --show $(if $(FORCE),--force) $(if $(JOBS),--jobs $(JOBS))

# A worker a core, each with one thread; a file's tests stay together, for what they share.
test: $(READY) ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(READY) ## check style, types, docstrings and the floors of ARCHITECTURE.md
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/numpydoc lint $$(git ls-files 'src/*.py')

verify: ## run the pipeline afresh and hold its table against the committed one, row by row (PROFILE=...)
	@$(MAKE) --no-print-directory reproduce FORCE=1
	@$(BIN)/python tools/verify.py --profile $(PROFILE)

# Without $(MAKE) in it: `make --dry-run` would run the line.
twice: $(READY) profiles ## run the smoke profile twice from nothing and hold the metrics against each other, byte by byte
	@for pass in first second; do \
	  rm -rf data/smoke runs/smoke metrics/smoke plots/smoke build/twice/$$pass && mkdir -p build/twice && \
	  $(BIN)/python tools/reproduce.py smoke --show --force && cp -r metrics/smoke build/twice/$$pass || exit 1; \
	done
	@diff -r --exclude timing.json build/twice/first build/twice/second && echo byte-equal  # timing.json: clock readings

gate: $(READY) ## check that dvc.lock matches parameters and code, and the documents their metrics
	@$(BIN)/python tools/gate.py

ui: $(READY) ## open MLflow on 127.0.0.1 with the runs' comparison (PORT=5000)
	@$(BIN)/python -m d4lens.tracking --port $(PORT)

profiles: $(READY) ## write each profile's trainings.yaml from its params.yaml, and its dvc.yaml from the root's
	@$(BIN)/python tools/profiles.py

docs: $(READY) ## write the API pages to build/docs
	@$(BIN)/python tools/docs.py

wheel: $(READY) ## build the wheel and predict with it in an environment of its own (EMPTY=1: its dependencies at their newest)
	@$(BIN)/python tools/wheel_check.py $(if $(EMPTY),--empty)

campaigns: $(READY) ## run the slow searches for faults: kills, hostile files, a large archive (docs/reliability.md)
	@$(BIN)/python tools/kill_campaign.py --kills 50
	@$(BIN)/python tools/fuzz.py --inputs 120000
	@$(BIN)/python tools/soak.py --images 20000

publish: $(READY) ## write what follows from the metrics: documents, model card, pictures (SHIP=1, SHIP=marginal: first a network itself)
	@$(BIN)/python tools/publish.py $(if $(SHIP),--ship $(filter marginal,$(SHIP)))

lock: $(READY) ## resolve requirements.lock anew from pyproject.toml
	@$(BIN)/python tools/lock.py

clean: ## remove data, runs and tracking, keep the environment, the cache and what git tracks
	rm -rf data runs reports mlflow.db mlartifacts
