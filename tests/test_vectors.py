"""The attack vectors: what must pass passes, what must be refused is refused by the check that the vector names."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fieldprint.anchor import Policy, sign_anchor
from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import VerifierKey, sign_note, verify_note
from fieldprint.registry import Registry
from fieldprint.tlog import verify_consistency, verify_inclusion
from fieldprint.verify import verify_anchor, verify_receipt
from tests.vectors.make_vectors import ANCHOR, OWNER, RECORD, SIGNER, render

FOLDER = Path(__file__).parent / "vectors"
SETTING = json.loads((FOLDER / "policy.json").read_text())
POLICY = Policy.from_bytes(SETTING["policy"].encode())
NOW = datetime.strptime(SETTING["now"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
raw = base64.b64decode


def run(name: str, vector: dict[str, Any]) -> None:
    registry = Registry.replay(map(raw, vector["entries"]), POLICY) if "entries" in vector else None
    if name == "anchor":
        verify_anchor(raw(vector["anchor"]), POLICY, now=NOW, registry=registry, model=vector["model"])
    elif name == "receipt":
        verify_receipt(raw(vector["receipt"]), POLICY, now=NOW, registry=registry)
    elif name == "note":
        keys = [VerifierKey.parse(key) for key in vector["keys"]]
        try:
            assert verify_note(raw(vector["note"]), keys).encode() == raw(vector["text"] or "")
        except FormatError as error:
            raise VerificationError(1, error.what) from error
    elif name == "inclusion":
        proof = [raw(h) for h in vector["proof"]]
        leaf, root = raw(vector["leaf_hash"]), raw(vector["root_hash"])
        verify_inclusion(leaf, vector["index"], vector["tree_size"], proof, root)
    else:
        proof = [raw(h) for h in vector["proof"]]
        roots = raw(vector["root1"]), raw(vector["root2"])
        verify_consistency(vector["size1"], vector["size2"], proof, *roots)


NAMES = ("anchor", "receipt", "note", "inclusion", "consistency")
VECTORS = [
    pytest.param(name, vector, id=f"{name}: {vector['desc']}")
    for name in NAMES
    for vector in json.loads((FOLDER / f"{name}.json").read_text())
]


@pytest.mark.parametrize(("name", "vector"), VECTORS)
def test_vector(name: str, vector: dict[str, Any]) -> None:
    if vector["want_error"] is None:
        run(name, vector)
        return
    with pytest.raises(VerificationError) as caught:
        run(name, vector)
    assert caught.value.check == vector["want_error"]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_good_cases_and_attacks_by_name(name: str) -> None:
    rows = json.loads((FOLDER / f"{name}.json").read_text())
    assert len({row["desc"] for row in rows}) == len(rows) >= 15
    wanted = {row["want_error"] for row in rows}  # 12 needs a registry of another policy: test_verify has it
    checks = {"anchor": 15, "receipt": 7, "note": 2, "inclusion": 2, "consistency": 3}[name]
    assert wanted == {None, *range(1, checks + 1)} - ({12} if name == "anchor" else set())


def test_limits_that_would_make_large_vectors() -> None:
    room = 1_000_000 - len(sign_note("\n", [SIGNER]))
    note = sign_note("a" * room + "\n", [SIGNER])
    assert len(note) == 1_000_000 and verify_note(note, [SIGNER.verifier_key])
    with pytest.raises(FormatError, match="more than 1000000"):
        verify_note(b"a" + note, [SIGNER.verifier_key])
    with pytest.raises(VerificationError, match="more than 1048576"):
        verify_anchor(bytes(1_048_577), POLICY, now=NOW, registry=None)
    records = tuple(replace(RECORD, model=f"{i:064x}") for i in range(65))
    largest, larger = (sign_anchor(replace(ANCHOR, fieldprints=records[:n]), [OWNER]) for n in (64, 65))
    verify_anchor(largest, POLICY, now=NOW, registry=None)
    with pytest.raises(VerificationError, match="at most 64"):
        verify_anchor(larger, POLICY, now=NOW, registry=None)


def test_the_files_are_what_their_script_makes() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == set(render())
    for name, content in render().items():
        assert (FOLDER / name).read_text() == content, name
