"""What an import loads, in a fresh process: an auditor needs neither torch nor numpy, and nobody waits."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "transformers", "safetensors", "tokenizers", "gguf"}
# cryptography brings the last two.
AUDITOR = {"fieldprint", "blake3", "cryptography", "rfc8785", "_cffi_backend", "_openssl"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules, outside the standard library, that `statement` loads."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    bare = subprocess.run(
        [sys.executable, "-c", code.replace(statement, "pass")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(run.stdout)) - set(json.loads(bare.stdout)) - sys.stdlib_module_names


def test_the_package_alone_loads_nothing_else() -> None:
    assert loaded_by("import fieldprint") == {"fieldprint"}


@pytest.mark.parametrize(
    "module", ["tlog", "verify", "anchor", "note", "registry", "commit", "blake3", "adapters.model_folder"]
)
def test_auditors_module_loads_no_tensor_library(module: str) -> None:
    assert loaded_by(f"import fieldprint.{module}") & HEAVY == set()


def test_the_theory_loads_the_standard_library_only() -> None:
    modules = "contraction, distance, hints, mass, quantization, stability"
    assert loaded_by(f"from fieldprint.theory import {modules}") == {"fieldprint"}


def test_public_names_of_the_auditor_load_no_tensor_library() -> None:
    names = (
        "sign_anchor, verify_anchor, verify_receipt, Policy, AnchorArtifact, LogWriter, LogReader, Registry"
    )
    assert loaded_by(f"from fieldprint import {names}") & HEAVY == set()


def test_auditor_loads_these_packages_and_no_other() -> None:
    assert loaded_by("import fieldprint.tlog, fieldprint.verify") <= AUDITOR


def processor_seconds_of(statement: str) -> float:
    """The least of seven fresh processes: what else the machine does delays an import, and never makes it quicker."""
    code = f"from time import process_time as clock; t = clock(); {statement}; print(clock() - t)"
    return min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(7)
    )


def test_import_takes_under_100_ms() -> None:
    """A healthy one is near 1 ms."""
    assert processor_seconds_of("import fieldprint") < 0.1


def test_log_and_verifier_are_imported_in_under_half_a_second() -> None:
    """A healthy one is between 0.1 and 0.25 s on the machines that it was seen on; a tensor library alone takes more than this."""
    assert processor_seconds_of("import fieldprint.tlog, fieldprint.verify") < 0.5
