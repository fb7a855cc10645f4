# make demo   the whole pipeline on synthetic DICOM, in demo/ (about ten minutes after installation)
# make finetune  three patients of another kind, from random weights and from the checkpoint that ships
# make recipe ANATOMY=DIR  a cohort around real bones, processed and trained, as for a network that ships
# make test   the fast tests, the three scripts among them; make test-slow the others
# make lint   ruff, mypy, and which room may import which
# The commands below work without make, too; see README.md.

PYTHON ?= python3
BIN := venv/bin
DEMO := demo
RUN := $(BIN)/python

.PHONY: demo finetune anatomy-named recipe test test-slow lint install clean-demo

install: venv/.installed

venv/.installed: requirements.txt
	$(PYTHON) -m venv venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

venv/.installed-dev: requirements-dev.txt venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Every step skips what it finds done, so an interrupted demo goes on when it is started again.
demo: venv/.installed
	$(RUN) -m multipass.phantom --output $(DEMO)/ctpel --patients 9 --seed 1 --matrix 256 --jobs 2
	$(RUN) -m multipass.phantom --output $(DEMO)/test_data --patients 3 --seed 2 --matrix 256 --jobs 2
	$(RUN) processing.py --input $(DEMO)/ctpel --output $(DEMO)/processed_files
	$(RUN) training.py --data $(DEMO)/processed_files/complete_dataset.pkl --dicom $(DEMO)/ctpel \
	    --output $(DEMO) --passes 2 --minutes 7.5 --steps-per-epoch 40 --augmentation 0.3 --resume
	$(RUN) inference_pipeline/run_inference.py --input $(DEMO)/test_data \
	    --output $(DEMO)/inference_results --model $(DEMO)/best_model.pth
	@echo "The same patients by the network that ships:"
	$(RUN) inference_pipeline/run_inference.py --input $(DEMO)/test_data \
	    --output $(DEMO)/shipped_results

# Three patients train, one validates, six others are segmented; both trainings take six minutes.
FEW := $(DEMO)/few
FEW_TRAINING := training.py --data $(FEW)/processed_files/complete_dataset.pkl --dicom $(FEW)/ctpel \
    --folds 4 --passes 2 --minutes 6 --steps-per-epoch 30 --augmentation 0.3 --resume
FEW_INFERENCE := inference_pipeline/run_inference.py --input $(FEW)/test_data

finetune: venv/.installed
	$(RUN) -m multipass.phantom --output $(FEW)/ctpel --patients 4 --seed 21 --matrix 256 --jobs 2
	$(RUN) -m multipass.phantom --output $(FEW)/test_data --patients 6 --seed 22 --matrix 256 --jobs 2
	$(RUN) processing.py --input $(FEW)/ctpel --output $(FEW)/processed_files
	$(RUN) $(FEW_TRAINING) --output $(FEW)/scratch
	$(RUN) $(FEW_TRAINING) --output $(FEW)/tuned --init inference_pipeline/best_model.pth
	@echo "Trained from random weights:"
	$(RUN) $(FEW_INFERENCE) --output $(FEW)/scratch_results --model $(FEW)/scratch/best_model.pth
	@echo "Fine-tuned, the same time:"
	$(RUN) $(FEW_INFERENCE) --output $(FEW)/tuned_results --model $(FEW)/tuned/best_model.pth
	@echo "As it ships:"
	$(RUN) $(FEW_INFERENCE) --output $(FEW)/shipped_results

# From a folder of real bone surfaces (docs/data.md) to a network, without DICOM; started again, it
# goes on.
RECIPE := recipe

anatomy-named:
	@test -d "$(ANATOMY)" || { echo "make recipe ANATOMY=DIR: DIR is the folder of bone surfaces"; exit 2; }

recipe: anatomy-named venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-anatomy.txt
	$(RUN) -m multipass.phantom --files --anatomy $(ANATOMY) --part train --size any \
	    --patients 240 --seed 9000 --matrix 320 --output $(RECIPE)/files --jobs 2
	$(RUN) training.py --data $(RECIPE)/files --output $(RECIPE) \
	    --epochs 32 --steps-per-epoch 250 --coarse 0.4 --augmentation 0.3 \
	    --ema 0.995 --folds 24 --resume

# Two tests at a time, one thread each.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n 2

test: venv/.installed-dev
	$(PYTEST) -m "not slow"

test-slow: venv/.installed-dev
	$(PYTEST) -m slow

lint: venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean-demo:
	rm -rf $(DEMO)
