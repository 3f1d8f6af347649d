# Each goal sets up what it needs; nothing has to be done before. See scripts/setup.
.PHONY: demo test lint bench soak docs figures clean

PYTHON_IN = .venv/bin/python
# Options for the demo: make demo OPTIONS='--left reject --right double'
OPTIONS =
# What to test: make test TESTS=tests/unit
TESTS =
# All of them run, whatever the first ones say. What to measure: make bench BENCHMARKS=wan
BENCHMARKS = startup connect datapath secure latency flood memory wan vpn
# How long to soak, and how much.
SOAK =

demo:
	@scripts/setup demo
	@$(PYTHON_IN) -m nat_traverse demo $(OPTIONS)

test:
	@scripts/setup test
	$(PYTHON_IN) scripts/test $(TESTS)

lint:
	@scripts/setup lint
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m mypy

bench:
	@scripts/setup bench
	$(PYTHON_IN) -m pytest -q bench/test_relay.py
	@status=0; for part in $(BENCHMARKS); do \
	    echo "== bench.$$part"; $(PYTHON_IN) -m bench.$$part || status=1; \
	done; exit $$status

# Ten minutes and 50 GB; a taste of it: make soak SOAK='--seconds 20 --gigabytes 0.5'
soak:
	@scripts/setup soak
	$(PYTHON_IN) -m bench.soak $(SOAK)

# The manual pages and the shell completions, from the table of options.
docs:
	@scripts/setup lint
	$(PYTHON_IN) -m nat_traverse.cli.manual >docs/nat-traverse.1
	for page in $$($(PYTHON_IN) -m nat_traverse.cli.pages); do \
	    $(PYTHON_IN) -m nat_traverse.cli.pages $$page >docs/$$page || exit 1; \
	done
	$(PYTHON_IN) -m nat_traverse.cli.completion bash >docs/completion/nat-traverse.bash
	$(PYTHON_IN) -m nat_traverse.cli.completion zsh >docs/completion/_nat-traverse
	$(PYTHON_IN) -m nat_traverse.cli.completion fish >docs/completion/nat-traverse.fish

# The figures of docs/traversal.md, from the simulator; some minutes on two processors.
figures:
	@scripts/setup figures
	$(PYTHON_IN) -m figures

clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
