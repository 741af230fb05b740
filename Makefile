.PHONY: demo test bench clean
VENV := .venv
PYTHON ?= python3
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml
	$(PIP) install -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(PIP) install -e '.[dev,model]'
	touch $@ $(VENV)/.core

# A world of shapes, a COCO-VGD made of it, and a picture to look at.
demo: $(VENV)/.core
	rm -rf demo
	$(VENV)/bin/dataengine synth shapes --images 200 --out demo/shapes
	$(VENV)/bin/dataengine build vgd --source shapes=demo/shapes --out demo/vgd --workers 2
	$(VENV)/bin/dataengine validate demo/vgd
	$(VENV)/bin/dataengine preview demo/vgd --samples 4 --seed 1 --out demo/sheet.png
	@echo
	@echo "Look at demo/sheet.png: pictures, masks, prompts and conversations of four samples."
	@echo "Open demo/vgd/report.html: what the dataset holds, and 64 samples."
	@echo "$(VENV)/bin/dataengine view demo/vgd shows all of it in your browser."

test: $(VENV)/.dev
	$(VENV)/bin/ruff format --no-cache --check .
	$(VENV)/bin/ruff check --no-cache .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n 2 --dist worksteal

# Every figure the README claims; takes about half an hour.
bench: $(VENV)/.dev
	$(VENV)/bin/python -m benchmarks

clean:
	rm -rf $(VENV) .numba demo build *.egg-info
