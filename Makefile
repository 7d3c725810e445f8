# What to type: `make demo`, `make test`. Both install what they need, and say when that needs root.
VENV := .venv
BIN := $(VENV)/bin
GUESTCTL := $(BIN)/guestctl

.PHONY: help setup demo test test-here fuzz lint bench proof clean \
	checked-style checked-guest-init checked-host-view

help:
	@echo "make demo    builds four packages in four ARMv5 guests"
	@echo "make test    runs the whole test suite, as a user that is not root"
	@echo "make fuzz    fuzzes the frame decoders of both sides"
	@echo "make bench   prints how fast things are, as ratios"
	@echo "make proof   runs what takes long, and writes docs/proof/; goes on where it was"
	@echo "make lint    ruff and mypy alone"
	@echo "make clean   removes what was built here; caches stay"

setup:
	@tools/setup.sh

demo: setup
	$(BIN)/python examples/demo.py

# Tests run as an ordinary user; root gets one made for the purpose and a copy of the checkout.
# `make test WORKERS=1 PYTEST=tests/test_wire.py`: by one process, that file only.
test:
	@tools/setup.sh --packages-only
	@tools/as-user.sh make --no-print-directory test-here

test-here: setup
	@$(MAKE) --no-print-directory -j2 checked-style checked-guest-init checked-host-view
	$(GUESTCTL) image build armv5l
	$(GUESTCTL) image build x86_64
	@tools/beside.sh "decoders of both sides, fuzzed for a minute" tools/fuzz.sh 60 -- \
		$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),3) $(PYTEST)

checked-style:
	@tools/step.sh "style" $(MAKE) --no-print-directory lint

checked-guest-init checked-host-view: checked-%:
	@tools/step.sh "$*, with sanitizers" $(MAKE) --no-print-directory -C $* check

fuzz: setup
	tools/fuzz.sh $(or $(SECONDS),60)

lint:
	$(BIN)/ruff check guestctl tests examples
	$(BIN)/ruff format --check guestctl tests examples
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tests.bench $(BENCH)

proof: setup
	$(BIN)/python -m tests.proof $(PROOF)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
