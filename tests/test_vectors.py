"""The attack vectors: what must pass passes, what must be refused is refused by the check that the vector names."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fieldprint.anchor import Policy
from fieldprint.errors import VerificationError
from fieldprint.tlog import verify_consistency, verify_inclusion
from fieldprint.verify import verify_anchor, verify_receipt
from tests.vectors.make_vectors import render

FOLDER = Path(__file__).parent / "vectors"
SETTING = json.loads((FOLDER / "policy.json").read_text())
POLICY = Policy.from_bytes(SETTING["policy"].encode())
NOW = datetime.strptime(SETTING["now"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
raw = base64.b64decode


def run(name: str, vector: dict[str, Any]) -> None:
    if name == "anchor":
        verify_anchor(raw(vector["anchor"]), POLICY, now=NOW, registry=None, model=vector["model"])
    elif name == "receipt":
        verify_receipt(raw(vector["receipt"]), POLICY, now=NOW)
    elif name == "inclusion":
        proof = [raw(h) for h in vector["proof"]]
        leaf, root = raw(vector["leaf_hash"]), raw(vector["root_hash"])
        verify_inclusion(leaf, vector["index"], vector["tree_size"], proof, root)
    else:
        proof = [raw(h) for h in vector["proof"]]
        roots = raw(vector["root1"]), raw(vector["root2"])
        verify_consistency(vector["size1"], vector["size2"], proof, *roots)


VECTORS = [
    pytest.param(name, vector, id=f"{name}: {vector['desc']}")
    for name in ("anchor", "receipt", "inclusion", "consistency")
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


def test_the_files_are_what_their_script_makes() -> None:
    for name, content in render().items():
        assert (FOLDER / name).read_text() == content, name
