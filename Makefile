# Everything runs from .venv, which the first target that needs it creates. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := requirements/dev.txt
LANGCHAIN := .venv-langchain
LANGCHAIN_LOCK := requirements/langchain.txt
CREWAI := .venv-crewai
CREWAI_LOCK := requirements/crewai.txt
SDKS := .venv-sdks
SDKS_LOCK := requirements/sdks.txt
BENCH := .venv-bench
BENCH_LOCK := benchmarks/requirements.txt

.PHONY: help setup demo chat serve check test test-all test-langchain test-crewai test-sdks docs lint types format picture \
  llama-server lock wheel clean bench bench-client bench-recovery bench-crewai bench-fleet bench-gateway bench-routing \
  bench-dashboard bench-load faults faults-fleet soak

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Create .venv with everything that demo and tests need

$(READY): pyproject.toml $(LOCK) scripts/find_python.sh
	@python=$$(scripts/find_python.sh) && \
	echo "setting up $(VENV) with $$($$python --version)" >&2 && \
	{ [ "$$($(BIN)/python --version 2>/dev/null)" = "$$($$python --version)" ] || $$python -m venv --clear $(VENV); } && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . && \
	touch $@

demo: $(READY) ## Stream an answer from the demo model to this terminal
	@$(BIN)/llamastream chat --demo "Tell me a story."

chat: $(READY) ## Ask a question: make chat Q="What is a slot?"
	@$(BIN)/llamastream chat "$(or $(Q),Who are you?)"

serve: $(READY) ## Run an optimised server on port 8080 (demo model unless MODEL=file.gguf)
	@$(BIN)/llamastream serve $(if $(MODEL),--model "$(MODEL)")

check: $(READY) ## Say what is here and what is missing
	@$(BIN)/llamastream check

test: $(READY) ## Run the tests against a real llama-server: make test ARGS="test/cli -k serve"
	@TEST_PYTHON=$(BIN)/python scripts/run_tests.sh $(ARGS)

test-all: test test-langchain test-crewai test-sdks ## The same, with all that needs environments of its own

# pytest-asyncio, which LangChain's standard tests bring, wants to be told; their benchmarks are none of ours.
test-langchain: $(LANGCHAIN)/.ready ## The tests with LangChain, its own standard tests among them
	@$(LANGCHAIN)/bin/python -m mypy src/llamastream/integrations test/integrations examples/fastapi_chat
	@$(LANGCHAIN)/bin/python -m pytest test/integrations/langchain \
	  "test/docs/test_docs_code.py::test_python_blocks_run_in_order_against_a_real_server" -k "langchain or integrations.md" \
	  -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function --benchmark-disable

test-crewai: $(CREWAI)/.ready ## The tests with CrewAI, which stays on this machine and says nothing of it to anybody
	@$(CREWAI)/bin/python -m mypy src/llamastream/integrations test/integrations examples/crewai_project \
	  benchmarks/crewai_events.py
	@$(CREWAI)/bin/python -m pytest test/integrations/crew \
	  "test/docs/test_docs_code.py::test_python_blocks_run_in_order_against_a_real_server" -k "crew or integrations.md"

test-sdks: $(SDKS)/.ready ## The tests of the gateway with OpenAI's and Anthropic's own clients
	@$(SDKS)/bin/python -m mypy test/gateway/clients
	@$(SDKS)/bin/python -m pytest test/gateway/clients

# An environment of its own, from its lock: $(call own,directory,lock,the Python that is too new for its packages)
define own
@python=$$(scripts/find_python.sh $(3)) && \
echo "setting up $(1) with $$($$python --version)" >&2 && \
$$python -m venv --clear $(1) && \
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2) && \
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . && \
touch $(1)/.ready
endef

$(LANGCHAIN)/.ready: pyproject.toml $(LANGCHAIN_LOCK) scripts/find_python.sh
	$(call own,$(LANGCHAIN),$(LANGCHAIN_LOCK))

$(CREWAI)/.ready: pyproject.toml $(CREWAI_LOCK) scripts/find_python.sh
	$(call own,$(CREWAI),$(CREWAI_LOCK),3.14)

$(SDKS)/.ready: pyproject.toml $(SDKS_LOCK) scripts/find_python.sh
	$(call own,$(SDKS),$(SDKS_LOCK))

bench: bench-client bench-recovery bench-crewai bench-fleet bench-gateway bench-routing bench-dashboard bench-load ## All benchmarks

bench-client: $(BENCH)/.ready ## What streaming costs, beside other clients: make bench-client ARGS=--quick
	@$(BENCH)/bin/python benchmarks/client.py $(ARGS)

bench-recovery: $(BENCH)/.ready ## What recovery costs a stream that nothing happens to
	@$(BENCH)/bin/python benchmarks/recovery.py $(ARGS)

bench-crewai: $(CREWAI)/.ready ## What an event of CrewAI costs, and what of it is ours
	@CREWAI_DISABLE_TELEMETRY=true CREWAI_TRACING_ENABLED=false $(CREWAI)/bin/python benchmarks/crewai_events.py $(ARGS)

bench-gateway: $(READY) ## What the gateway costs, beside nginx, HAProxy and FastAPI with httpx, as far as they are there
	@$(BIN)/python benchmarks/gateway.py $(ARGS)

bench-routing: $(READY) ## Who waits how long for a first token, by how requests are routed
	@$(BIN)/python benchmarks/routing.py $(ARGS)

bench-dashboard: $(READY) ## What the dashboard costs the gateway
	@$(BIN)/python benchmarks/dashboard.py $(ARGS)

bench-load: $(READY) ## What the load generator of `llamastream bench` costs
	@$(BIN)/python benchmarks/load_generator.py $(ARGS)

bench-fleet: $(READY) ## What supervision costs, and what warm restarts save
	@$(BIN)/python benchmarks/fleet.py $(ARGS)

# Other clients need pins of their own, so the benchmarks have their own environment.
$(BENCH)/.ready: pyproject.toml $(BENCH_LOCK) scripts/find_python.sh
	$(call own,$(BENCH),$(BENCH_LOCK))

faults: $(READY) ## Break thousands of real streams and count what is lost: make faults ARGS=--quick
	@$(BIN)/python -m tools.faults $(ARGS)

faults-fleet: $(READY) ## Kill, freeze and break real servers of a fleet: make faults-fleet ARGS=--quick
	@$(BIN)/python -m tools.faults.fleet $(ARGS)

soak: $(READY) ## Broken streams for a long time: make soak MINUTES=30
	@$(BIN)/python -m tools.soak --minutes $(or $(MINUTES),30)

docs: $(READY) ## Write the reference pages, and the files for Prometheus and Grafana, anew
	@$(BIN)/python docs/generate_settings.py && $(BIN)/python docs/generate_metrics.py && \
	$(BIN)/python docs/generate_prometheus.py

lint: $(READY) ## Style and common mistakes
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	@$(BIN)/mypy

format: $(READY) ## Put the code into the one layout
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

picture: $(READY) ## Make the README's picture of the terminal anew
	@$(BIN)/llamastream chat --demo --svg docs/terminal.svg "Tell me a story."

llama-server: ## Build a llama-server executable to test on (ten minutes)
	@scripts/build_llama_server.sh

lock: ## Write the locked requirements anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra dev pyproject.toml --quiet -o $(LOCK) --upgrade
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra server --extra fastapi --extra langchain pyproject.toml \
	  requirements/langchain.in --quiet -o $(LANGCHAIN_LOCK) --upgrade
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra server --extra crewai pyproject.toml requirements/crewai.in \
	  --quiet -o $(CREWAI_LOCK) --upgrade
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra server --extra fast pyproject.toml requirements/sdks.in \
	  --quiet -o $(SDKS_LOCK) --upgrade
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra fast pyproject.toml benchmarks/requirements.in --quiet \
	  -o $(BENCH_LOCK) --upgrade

wheel: $(READY) ## Build the wheel into dist/
	@$(BIN)/python -m hatchling build

clean: ## Remove the environment and caches
	rm -rf $(VENV) $(LANGCHAIN) $(CREWAI) $(SDKS) $(BENCH) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
