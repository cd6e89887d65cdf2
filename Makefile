# make demo: install; train, test and sample a small model on built-in digits; then test and sample
# the MNIST model that comes with the project, and compress digits with it.
# make test: install, then lint, types and tests.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
MNIST := -i examples --run_dir $(RUN)/mnist \
	--load_params pretrained/binary_mnist_small.pth

.PHONY: demo test lint clean

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
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
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv
