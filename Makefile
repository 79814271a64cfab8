# make demo     report on and compare two real embeddings; needs Python >= 3.11 and nothing else
# make test     the whole test suite         ARGS="--backend torch -k slices" is passed to pytest
# make check    linter and type checker
# make stubs    signatures of the torch functions, from the losses' declarations
# make docs     HTML documentation, warnings are errors
# make bench    benchmarks against eager torch, POT and SciPy, into docs/benchmarks
# make bench-gpu  what a CUDA machine says, within MINUTES=8, into gpu.json; needs PYTHON with torch >= 2.9
# make train-demo   train a small ViT on digits, some minutes; report on and compare its embeddings
# make clean    remove everything that these made

PYTHON ?= python3
ARGS ?=
MINUTES ?= 8

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
RUN := $(VENV)/bin/python -m

.PHONY: demo train-demo test check stubs docs bench bench-gpu clean

demo: $(VENV)/.installed-report
	$(VENV)/bin/python docs/examples/make_digits_embeddings.py demo
	$(VENV)/bin/visreg report demo/projection.npy --html report.html
	$(VENV)/bin/visreg compare --paired demo/pixels.npy demo/projection.npy

train-demo: $(VENV)/.installed-train
	$(RUN) reference_train --config-name digits run.folder=runs/demo
	$(VENV)/bin/visreg report runs/demo/embeddings/trained.npy --labels runs/demo/embeddings/labels.npy --html runs/demo/report.html
	$(VENV)/bin/visreg compare --paired runs/demo/embeddings/pixels.npy runs/demo/embeddings/untrained.npy runs/demo/embeddings/trained.npy

test: $(VENV)/.installed-test
	$(RUN) pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

check: $(VENV)/.installed-lint
	$(RUN) ruff check .
	$(RUN) mypy

stubs: $(VENV)/.installed-lint
	$(VENV)/bin/python adapters/write_stubs.py
	$(RUN) ruff format adapters/visreg_torch/functional.pyi

docs: $(VENV)/.installed-docs
	$(RUN) sphinx -b html -W --keep-going -E docs docs/_build/html

bench: $(VENV)/.installed-test
	$(RUN) tests.benchmarks.bench_losses --json docs/benchmarks/losses.json $(ARGS)
	$(RUN) tests.benchmarks.bench_trees --json docs/benchmarks/trees.json $(ARGS)
	$(RUN) tests.benchmarks.bench_jax --json docs/benchmarks/jax.json $(ARGS)
	$(RUN) tests.benchmarks.bench_sharding --json docs/benchmarks/sharding.json $(ARGS)
	$(RUN) tests.benchmarks.bench_slices --json docs/benchmarks/slices.json --figure docs/_static/slices.png $(ARGS)
	$(RUN) tests.benchmarks.bench_cost --json docs/benchmarks/cost.json --figure docs/_static/cost.png $(ARGS)
	$(RUN) tests.benchmarks.bench_kernels --json docs/benchmarks/kernels.json
	$(RUN) tests.benchmarks.bench_reports --json docs/benchmarks/reports.json $(ARGS)
	$(RUN) tests.benchmarks.bench_reports --parts 100000000 --json docs/benchmarks/parts.json $(ARGS)

# With whatever Python holds the machine's CUDA build of torch: no environment is made for it.
bench-gpu:
	PYTHONPATH=.:adapters $(PYTHON) -m tests.benchmarks.bench_gpu --minutes $(MINUTES) --json gpu.json $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache demo runs/demo report.html docs/_build docs/generated

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# A stamp for each extra: installing again is needed only after pyproject.toml or a pin changed.
# The demonstration takes whatever versions the user's pip finds for his Python; the rest are pinned.
$(VENV)/.installed-report: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable '.[report]'
	touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable '.[$*]'
	touch $@
