# Targets for a bare Debian or Ubuntu machine; `make` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
RUN := docker/in_environment.sh

# make train: episodes to record, minutes to learn the encoder and (twice) the core, seed, folder
EPISODES ?= 240
ENCODER_MINUTES ?= 40
CORE_MINUTES ?= 12
SEED ?= 0
TRAINING ?= runs/train
CORE ?= cfc-mixed
LEARN = --interface config/manipulator.interface.yaml --core $(CORE) --seed $(SEED)
# Any further arguments of the program behind a target, e.g. make demo ARGS='--parts 20'
ARGS ?=

.PHONY: help setup demo test lint bench train clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install everything into .venv and build the workspace (does nothing the second time)
	@docker/setup.sh

demo: setup ## run the conveyor scenario with the shipped checkpoint; table, recording and report at the end
	@$(RUN) demo $(ARGS)

test: setup lint ## check style and types, then run the tests of all packages
	@OMP_NUM_THREADS=1 $(RUN) python3 -m pytest -q $(ARGS)

lint: setup ## check style and types only
	@echo 'ruff'; $(RUN) ruff check .
	@echo 'mypy'; $(RUN) mypy

bench: setup ## measure the run time on this machine, which should do nothing else; table and page (10 minutes)
	@$(RUN) python3 test/benchmarks/bench.py $(ARGS)

train: setup ## record demonstrations in simulation and learn a policy from them (hours)
	@$(RUN) generate --output $(TRAINING)/demonstrations --episodes $(EPISODES) --seed $(SEED)
	@$(RUN) train --bags $(TRAINING)/demonstrations --output $(TRAINING)/first $(LEARN) \
		--stage-minutes $(ENCODER_MINUTES),$(CORE_MINUTES),0 $(ARGS)
	@echo 'the policy drives, the expert corrects it'
	@$(RUN) generate --output $(TRAINING)/corrections --episodes $$(($(EPISODES) / 2)) \
		--seed $$(($(SEED) + 100000)) --checkpoint $(TRAINING)/first/checkpoint.safetensors
	@$(RUN) train --bags $(TRAINING)/demonstrations $(TRAINING)/corrections \
		--init-encoder $(TRAINING)/first/checkpoint.safetensors --output $(TRAINING)/policy $(LEARN) \
		--stage-minutes 0,$(CORE_MINUTES),0 $(ARGS)
	@echo 'now: $(RUN) evaluate $(TRAINING)/policy/checkpoint.safetensors'

clean: ## remove what setup built and what runs left; keeps .venv
	rm -rf build install log runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
