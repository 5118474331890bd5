# `make test` needs nothing but Python 3.11 or newer and a package index; `make quality` and `make style` want
# `pip install -e '.[dev]'` in the Python that PYTHON names.
PYTHON ?= .venv/bin/python

.PHONY: test slow quality style

test:
	.ci/run

slow:
	.ci/run -m slow

quality:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) utils/check_repo.py

style:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
