# Each target sets itself up in the clone: Python 3.11 or newer and make are all that has to be there.
# Another Python: make train PYTHON=/path/to/python3.12

suits := -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell python3.11 $(suits) && echo python3.11 || echo python3)

run := digits-cnn-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help train test bench pictures check clean

help:
	@echo 'make train   train, evaluate and use a CNN on images of digits'
	@echo 'make test    the tests'
	@echo 'make bench DATA=folder   raynn beside others, into docs/benchmarks.md'
	@echo 'make pictures the pictures of the README'
	@echo 'make check   lint, format, types'
	@echo 'make clean   remove the environment and the caches, not the runs'

train: .venv/.installed
	.venv/bin/raynn train jobs/digits_cnn.yaml name=$(run)
	.venv/bin/raynn predict runs/$(run) test --out runs/$(run)/predictions.parquet
	@.venv/bin/python -c 'import pandas; t = pandas.read_parquet("runs/$(run)/predictions.parquet"); \
		t["probability"] = t.filter(like="probability_").max(axis=1).round(3); \
		print(t[["label", "prediction", "probability"]].head(8).to_string(index=False))'

# Tests of one process first, two at a time; those that start a Ray cluster then have the machine to themselves.
test: .venv/.installed
	.venv/bin/pytest -n 2 --dist loadscope -m 'not cluster and not slow and not gpu'
	.venv/bin/pytest -m 'cluster and not slow and not gpu'

# Timed, and therefore no test; LIGHTNING and LUDWIG name the Python of an environment that has it.
bench: .venv/.installed
	.venv/bin/python benchmarks/throughput.py $(DATA) --out docs/benchmarks.md \
		$(if $(LIGHTNING),--lightning $(LIGHTNING)) $(if $(LUDWIG),--ludwig $(LUDWIG))
	.venv/bin/python benchmarks/search.py $(DATA) --out docs/benchmarks.md

# The reports of made-up runs and of a made-up search, opened in Chromium; the tops of two of them are in the README.
pictures: .venv/.installed
	RAYNN_SCREENSHOTS=$(CURDIR)/build/pictures .venv/bin/pytest -m 'browser and not slow'
	@.venv/bin/python -c 'from PIL import Image; \
		[Image.open(f"build/pictures/{page}-1280.png").convert("RGB").crop((0, 0, 1280, height)).quantize(64) \
		.save(f"docs/pictures/{name}.png", optimize=True) \
		for page, name, height in (("search", "search", 1500), ("tides", "run", 2260))]'

check: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy raynn

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find raynn tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp comes last, so an installation that was cut short is taken up again.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) $(suits) || { echo 'raynn needs Python 3.11 or newer with ensurepip (Debian: python3-venv), and' \
		'"$(PYTHON)" is not that. Name one that is: make PYTHON=/path/to/python3.11 ...' >&2; exit 2; }
	@echo 'Installing raynn and what it needs into .venv: once, mostly downloads.'
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
