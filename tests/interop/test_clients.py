"""What the clients are given is what it says; the clients themselves run only under the marker `interop`."""

import base64
import json
from pathlib import Path

import pytest

from fieldprint.errors import FieldprintError
from fieldprint.note import COSIGNATURES, VerifierKey, verify_note
from fieldprint.tlog import (
    Checkpoint,
    LogReader,
    TrustPolicy,
    leaf_hash,
    verify_consistency,
    verify_cosignatures,
    verify_inclusion,
)
from fieldprint.tlog.trust import Group, KnownLog, KnownWitness
from tests.interop.__main__ import examine
from tests.interop.cases import CHANGES, INDEX, OLD_SIZE, write_cases
from tests.interop.clients import CLIENTS, Client

raw = base64.b64decode


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_cases(tmp_path_factory.mktemp("interop") / "cases")


def judge(folder: Path) -> None:
    """Our own verifiers on a case, as the clients' drivers call theirs."""
    case = json.loads((folder / "case.json").read_text())
    key = VerifierKey.parse(case["vkey"])
    checkpoint = Checkpoint.from_text(verify_note(case["checkpoint"].encode(), [key]))
    witnesses = tuple(
        KnownWitness(f"w{i}", VerifierKey.parse(text, COSIGNATURES))
        for i, text in enumerate(case["witnesses"])
    )
    both = TrustPolicy((KnownLog(key),), witnesses, (Group("both", 2, ("w0", "w1")),), "both")
    verify_cosignatures(case["checkpoint"].encode(), both)
    proof, grown = ([raw(h) for h in case[name]] for name in ("proof", "consistency"))
    leaf = leaf_hash(raw(case["leaf"]))
    verify_inclusion(leaf, case["index"], checkpoint.tree_size, proof, checkpoint.root_hash)
    verify_consistency(OLD_SIZE, checkpoint.tree_size, grown, raw(case["old_root"]), checkpoint.root_hash)
    reader = LogReader(folder / "log", [key])
    assert reader.root_hash(OLD_SIZE) == raw(case["old_root"])
    assert leaf_hash(reader.entry(INDEX)) == leaf


def test_our_own_verifiers_accept_the_good_case_and_refuse_every_change(cases: list[Path]) -> None:
    judge(cases[0])
    for folder, change in zip(cases[1:], CHANGES, strict=True):
        try:
            judge(folder)
        except FieldprintError:
            continue
        pytest.fail(f"{change.name} was accepted")


def test_every_change_changes_one_case_only(cases: list[Path]) -> None:
    found = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in cases
    ]
    assert len(found) == len(CHANGES) + 1
    assert all(other != found[0] for other in found[1:])


@pytest.mark.interop
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_client_accepts_our_log_and_refuses_changes(client: Client, cases: list[Path]) -> None:
    cache = Path(__file__).parents[2] / ".venv-interop"
    row = examine(client, cache, cases)
    assert row["ok"], row
