# make run      serve on 127.0.0.1:8000
# make run-gateway   the serverless mode on this machine
# make test     all tests but the slow ones, which take minutes; installs what it needs
# PYTHON=…      the interpreter to make .venv with (3.11 or newer)

SHELL := /bin/bash
# Tests start some hundred servers: each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
EXTENSIONS := $(wildcard _speedups/*.py _speedups/*.pyx _speedups/*.pxd)
# Not quiet: the first run takes its time, and shows what it does.
PIP := $(BIN)/python -m pip --disable-pip-version-check install
# It takes half of pip's time, and does not read pip's settings: so pip is tried after it.
UV := $(if $(shell command -v uv),uv pip install --python $(BIN)/python)

# One more than the cores it is meant for (2): tests wait for servers half of their time.
WORKERS := 3
PYTEST := $(BIN)/python -m pytest $(ARGS)

IMAGE := steadwire:local

.PHONY: audit bench bench-peers clean deploy-local format image install licences lint lock
.PHONY: package proof run run-gateway sbom soak test test-serverless-offline test-slow
.PHONY: test-tools wheels
.PHONY: coverage-of-requirements mutation prove-requirements

install: $(VENV)/.installed

run: install
	@exec $(BIN)/steadwire serve $(ARGS)

# The serverless mode: an emulated API Gateway and table, the service in frozen processes.
# The emulated table pins libraries of its own, so it has its own environment.
run-gateway: install
	@[ -x .tools/ministack/bin/ministack ] || { $(BIN)/python -m venv .tools/ministack && \
	  .tools/ministack/bin/python -m pip install --quiet ministack==1.5.33; }
	@PATH="$(CURDIR)/.tools/ministack/bin:$$PATH" exec $(BIN)/steadwire dev-gateway $(ARGS)

# The zip of the Lambda function (docs/serverless.md): ARGS="--architecture arm64",
# ARGS="--config steadwire.toml". On Lambda Python is 3.12 or newer: for another one than
# python3, make package PYTHON=python3.13 VENV=.venv-lambda
package: $(VENV)/.installed
	$(BIN)/python infra/package.py $(ARGS)

# infra/serverless.yaml in an emulated AWS on this machine, until Ctrl-C.
deploy-local: $(VENV)/.installed
	@.tools/ministack/bin/python -c 'import ministack, samtranslator' 2>/dev/null || { \
	  $(BIN)/python -m venv .tools/ministack && .tools/ministack/bin/python -m pip install \
	  --quiet ministack==1.5.33 aws-sam-translator==1.115.0; }
	$(BIN)/python infra/package.py --here --to build/here $(ARGS)
	@PATH="$(CURDIR)/.tools/ministack/bin:$$PATH" exec $(BIN)/python infra/deploy_local.py \
	  "$$(ls -t build/here/*.zip | head -1)"

test: $(VENV)/.installed-dev test-tools
	$(PYTEST) -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed-dev test-tools
	$(PYTEST) -m slow -n 2

# The function behind serverless-offline, with SDK clients before it; one of the slow tests.
test-serverless-offline: $(VENV)/.installed-dev test-tools
	$(PYTEST) tests/infra/test_serverless_offline.py

# Five scenarios with exact figures against the running service; under 30 s (docs/proof.md).
proof: $(VENV)/.installed
	@$(BIN)/python tests/standalone/proof.py $(ARGS)

# Changes the code in thousands of places, each time in one, and runs the tests that
# should notice; goes on where it was broken off. ARGS="breaker registry" for those.
mutation: $(VENV)/.installed-dev
	@$(BIN)/python -c 'import mutmut' 2>/dev/null || $(PIP) -e '.[mutation]'
	nice -n 10 $(BIN)/python -m tests.mutation $(ARGS)

# The npm packages and older SDKs that the tests drive; quick when they are there.
# Without them their tests are skipped, except under CI=true.
test-tools: $(VENV)/.installed-dev
	@if [ -x tests/tools/install ]; then \
	  tests/tools/install || [ "$$CI" != true ]; fi

# Each row of docs/requirements.md with its tests; fails if a live one has none.
coverage-of-requirements: $(VENV)/.installed-dev
	$(BIN)/python -m tests.requirements.coverage

# Takes each behaviour away, and sees its tests fail: half an hour, or ARGS=R13.
prove-requirements: $(VENV)/.installed-dev test-tools
	$(BIN)/python -m tests.requirements.prove $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Versions and hashes of what images, continuous integration and its tools install; run it
# after a change of pyproject.toml or of tests/tools/checks.txt. The extras that images have
# are named here and in the Dockerfile.
EXTRAS := agents valkey
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
  --generate-hashes --no-header --no-annotate
lock: $(VENV)/.installed-dev
	$(COMPILE) pyproject.toml $(EXTRAS:%=--extra %) -o requirements.lock
	$(COMPILE) pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) tests/tools/checks.txt -o tests/tools/checks.lock
	$(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(COMPILE) - -o requirements-build.lock

# Known vulnerabilities of what the lock names, where their database can be reached.
audit: $(VENV)/.installed-dev
	@found=$$($(BIN)/pip-audit -r requirements.lock --require-hashes --disable-pip \
	  --progress-spinner off 2>&1); status=$$?; \
	if grep -q 'Found .* known vulnerabilit' <<<"$$found"; then echo "$$found"; exit 1; \
	elif grep -q 'could not be audited' <<<"$$found" || [ $$status != 0 ]; then \
	  echo "the database of vulnerabilities cannot be reached: not all was audited"; \
	else echo "$$found"; fi

# What an image or a package is made of, for those who have to know: every package with its
# version and hashes (CycloneDX), into dist/.
sbom: $(VENV)/.installed-dev
	@mkdir -p dist
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
	  --output-reproducible --output-file dist/sbom.json

# The licences of what requirements.lock names, into docs/licences.md.
licences: $(VENV)/.installed-dev
	@{ echo "# Licences"; echo; \
	  echo "Of every package that an image has, by its own metadata. Made by"; \
	  echo "\`make licences\`; do not edit."; echo; \
	  $(BIN)/pip-licenses --order=name --no-version --format=markdown --packages \
	    $$(sed -nE 's/^([A-Za-z0-9._-]+)==.*/\1/p' requirements.lock); } > docs/licences.md

# The wheels that are published, for the CPython versions of pyproject.toml, into dist/;
# in containers on Linux.
wheels: $(VENV)/.installed-dev
	$(BIN)/cibuildwheel --output-dir dist

# Builds the image, starts it as it is deployed, and waits for its health check.
image:
	docker build --tag $(IMAGE) .
	@id=$$(docker run --detach --read-only --tmpfs /data:uid=10001,gid=10001 --cap-drop ALL \
	  --security-opt no-new-privileges --env STEADWIRE_API_KEY=key-of-the-image-test \
	  --env STEADWIRE_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN=true $(IMAGE)); \
	for second in $$(seq 90); do \
	  status=$$(docker inspect --format '{{.State.Health.Status}}' $$id); \
	  [ "$$status" = starting ] || break; sleep 1; \
	done; \
	docker stop --time 30 $$id >/dev/null; \
	code=$$(docker inspect --format '{{.State.ExitCode}}' $$id); \
	docker logs $$id; docker rm $$id >/dev/null; \
	echo "health: $$status, exit status: $$code"; [ "$$status $$code" = "healthy 0" ]

# Half an hour of mixed traffic at 1,000 connections; writes docs/soak.md.
soak: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/soak.py --write $(ARGS)

# Everything that make has made; databases stay.
clean:
	rm -rf $(VENV) .tools build dist *.egg-info _speedups/*.so _speedups/*.c
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .mutation
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@python=; \
	for each in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python=$$each; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Steadwire needs Python 3.11 or newer, and found none;" \
	    "install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV) || { \
	  echo "venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }
	@touch $@

# Editable: the sources are used where they are, and the C extensions are built beside
# them when a compiler is there (setup.py).
$(VENV)/.installed: $(VENV)/.made pyproject.toml setup.py $(EXTENSIONS)
	@echo "installing steadwire into $(VENV)"
	@$(if $(UV),$(UV) -e '.[agents]' ||) $(PIP) -e '.[agents]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml requirements-dev.lock setup.py $(EXTENSIONS)
	@echo "installing steadwire and its tests' packages into $(VENV)"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(VENV)/.installed $@

# Runs every benchmark and writes docs/benchmarks.md; needs an idle machine, 10 minutes.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/report.py

# The server beside others, installed into .tools/peers: 4 minutes on an idle machine.
bench-peers: $(VENV)/.installed-dev
	benchmarks/peers/install
	$(BIN)/python benchmarks/report.py --only peers $(ARGS)
