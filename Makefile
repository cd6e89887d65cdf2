# make demo: install; train, test and sample a small model on built-in digits; then test and sample
# the MNIST model that comes with the project, and compress digits with it.
# make test: install, then lint, types and tests.
# make test-web: install, with Debian's chromium if root, then the tests of the page in a browser.
# make web: install, then open the page with the models that come with the project.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
MNIST := -i examples --run_dir $(RUN)/mnist \
	--load_params pretrained/binary_mnist_small.pth

.PHONY: demo test test-web web lint clean

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/installed-web: .venv/installed requirements-web.txt
	$(BIN)/pip install --quiet -r requirements-web.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-web.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/installed
	rm -rf $(RUN)
	$(BIN)/python main.py --mode train --run_dir $(RUN) --disable_wandb
	$(BIN)/python main.py --mode test --run_dir $(RUN)
	$(BIN)/python main.py --mode sample --run_dir $(RUN)
	$(BIN)/python main.py --mode sample --run_dir $(RUN) --order_variants 0 --sample_region custom \
		--sample_offset1 0 --sample_offset2 -4 --sample_size_h 4 --sample_size_w 8
	$(BIN)/python main.py $(MNIST) --mode test
	$(BIN)/python main.py $(MNIST) --mode sample
	$(BIN)/python main.py $(MNIST) --mode sample --order_variants 0 --sample_region custom \
		--sample_offset1 0 --sample_offset2 -14 --sample_size_h 14 --sample_size_w 28
	$(BIN)/python main.py $(MNIST) --mode compress --output $(RUN)/digits.lmc
	$(BIN)/python main.py $(MNIST) --mode decompress --input $(RUN)/digits.lmc --output $(RUN)/digits
	@echo; echo "Pictures of the demo:"; ls $(RUN)/*.png $(RUN)/mnist/*.png

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/browser

test-web: .venv/installed-dev
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null \
		&& { apt-get install -qq -y --no-install-recommends chromium > /dev/null \
		|| { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null; }; }; } \
		|| { echo "there is no chromium: install it (Debian: apt-get install chromium)"; exit 1; }
	$(BIN)/python -m pytest tests/browser -rs

web: .venv/installed-web
	$(BIN)/python main.py --mode web

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv
