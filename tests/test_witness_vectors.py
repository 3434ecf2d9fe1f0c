"""The attack vectors of witnesses: what must pass passes, what must be refused is refused as the vector says."""

import base64
import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fieldprint.anchor import Policy
from fieldprint.errors import FormatError, LogError, VerificationError
from fieldprint.note import COSIGNATURES, LOG_SIGNATURES, VerifierKey, verify_signatures
from fieldprint.tlog import TrustPolicy, verify_checkpoint, verify_cosignatures, verify_log_proof
from fieldprint.tlog.witness import RefusalError, Witness, WitnessState
from fieldprint.tlog.witness_client import WitnessClient
from fieldprint.tlog.witness_server import answer
from fieldprint.verify import verify_receipt
from tests.tlog.test_witness_http import reply, saying
from tests.vectors.make_vectors import NOW
from tests.vectors.witness.make_witness_vectors import FOLDER, render
from tests.witnessing import NORTH

raw = base64.b64decode
CHECKS = {"cosignature": 2, "answer": 1, "proof": 4, "trust": 3, "policies": 1}


def load(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())
    return rows


def run(name: str, vector: dict[str, Any]) -> None:
    if name == "cosignature":
        keys = [VerifierKey.parse(key, (*LOG_SIGNATURES, *COSIGNATURES)) for key in vector["keys"]]
        found = numbered(1, lambda: verify_signatures(raw(vector["note"]), keys)).signatures
        cosigned = [[str(one.key), one.timestamp] for one in found if one.key.signature_type in COSIGNATURES]
        assert cosigned == vector["cosigned"]
    elif name == "answer":
        keys = [VerifierKey.parse(key, COSIGNATURES) for key in vector["keys"]]
        with saying(reply(200, raw(vector["answer"]))) as url, closing(WitnessClient(url, keys)) as client:
            found = numbered(1, lambda: client.add_checkpoint(raw(vector["checkpoint"]), lambda _old: []))
        note = raw(vector["checkpoint"]) + "".join(signature.line for signature in found).encode()
        assert verify_signatures(note, keys).signatures == found
    elif name == "proof":
        trust = TrustPolicy.from_bytes(vector["policy"].encode())
        verify_log_proof(
            raw(vector["proof"]), trust, None if vector["entry"] is None else raw(vector["entry"])
        )
    elif name == "trust":
        trust = numbered(1, lambda: TrustPolicy.from_bytes(raw(vector["policy"])))
        assert TrustPolicy.from_bytes(trust.to_bytes()) == trust
        verify_checkpoint(raw(vector["checkpoint"]), trust.log_keys)
        verify_cosignatures(raw(vector["checkpoint"]), trust)
    elif name == "policies":
        policy = numbered(1, lambda: Policy.from_bytes(vector["policy"].encode()))
        assert Policy.from_bytes(policy.to_bytes()) == policy
    else:
        verify_receipt(raw(vector["receipt"]), Policy.from_bytes(vector["policy"].encode()), now=NOW)


def numbered(check: int, attempt: Any) -> Any:
    try:
        return attempt()
    except (FormatError, LogError) as error:
        raise VerificationError(check, error.what) from error


VECTORS = [
    pytest.param(name, vector, id=f"{name}: {vector['desc']}")
    for name in (*CHECKS, "receipt")
    for vector in load(name)
]


@pytest.mark.parametrize(("name", "vector"), VECTORS)
def test_vector(name: str, vector: dict[str, Any]) -> None:
    if vector["want_error"] is None:
        run(name, vector)
        return
    with pytest.raises(VerificationError) as caught:
        run(name, vector)
    assert caught.value.check == vector["want_error"]


@pytest.mark.parametrize("vector", load("witness"), ids=lambda vector: vector["desc"])
def test_witness(vector: dict[str, Any]) -> None:
    """What the core says, and what goes over the wire."""
    state = WitnessState(Path(":memory:"), new=True)
    logs = [VerifierKey.parse(key, LOG_SIGNATURES) for key in vector["logs"]]
    witness = Witness([NORTH], logs, state, clock=datetime(2026, 11, 24, tzinfo=UTC).timestamp)
    for body in vector["before"]:
        witness.add_checkpoint(raw(body))
    said = answer(witness, "POST", "/add-checkpoint", raw(vector["request"]))
    assert said.status == vector["want_status"]
    if vector["want_size"] is not None:
        assert (said.body, said.content_type) == (b"%d\n" % vector["want_size"], "text/x.tlog.size")
    if said.status != 200:
        with pytest.raises(RefusalError):
            witness.add_checkpoint(raw(vector["request"]))
    state.close()


@pytest.mark.parametrize("name", [*CHECKS, "witness", "receipt"])
def test_every_file_has_good_cases_and_attacks_by_name(name: str) -> None:
    rows = load(name)
    assert len({row["desc"] for row in rows}) == len(rows) >= 10
    if name == "witness":
        assert {row["want_status"] for row in rows} == {200, 400, 403, 404, 409, 422}
    elif name == "receipt":
        assert {row["want_error"] for row in rows} == {None, 2, 8}
    else:
        assert {row["want_error"] for row in rows} == {None, *range(1, CHECKS[name] + 1)}


def test_the_files_are_what_their_script_makes() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == set(render())
    for name, content in render().items():
        assert (FOLDER / name).read_text() == content, name
