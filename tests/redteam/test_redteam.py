"""The corpus: each attack is refused for the reason that it names, and nothing has changed then."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fieldprint.anchor import Policy
from fieldprint.anchor.artifact import parse_time
from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import NoteSigner
from fieldprint.registry import EventError, Registry, StatusProof, append_event
from fieldprint.tlog import LogReader, LogWriter
from fieldprint.verify import verify_anchor
from tests.redteam.make_cases import CASES, drift, files
from tests.registry.test_state import snapshot
from tests.registry.world import LOG

LONGEST_LOG = 20  # entries; longer ones are replayed in memory only
FAMILIES = sorted(path.stem for path in CASES.glob("*.json"))
ALL = [(family, case) for family in FAMILIES for case in json.loads((CASES / f"{family}.json").read_text())]
IDS = [f"{family}: {case['name']}" for family, case in ALL]


def expand(part: Any) -> bytes:
    """The bytes of a text, or of its parts."""
    if isinstance(part, list):
        return b"".join(map(expand, part))
    return (part["unit"] * part["times"] if isinstance(part, dict) else part).encode()


def entries_of(case: dict[str, Any]) -> list[bytes]:
    entries: list[bytes] = []
    for entry in case["log"]:
        entries += drift(entry["turns"])[0] if isinstance(entry, dict) else [entry.encode()]
    return entries


def policy_of(case: dict[str, Any], role: str = "policy") -> Policy:
    return Policy.from_bytes((CASES / case.get(role, "policy.toml")).read_bytes())


def attempt(case: dict[str, Any], registry: Registry) -> dict[str, Any] | None:
    """Do it; why it was refused, or None."""
    do = case["do"]
    if "policy" in do:
        try:
            Policy.from_bytes(do["policy"].encode())
        except FormatError as error:
            return {"words": str(error)}
        return None
    if "apply" in do:
        if registry.apply(registry.position, expand(do["apply"])) is not None:
            return None
        return {"why": registry.refused[-1].why}
    try:
        verify_anchor(
            expand(do["verify"]),
            policy_of(case, "verifier"),
            now=parse_time(do["now"]),
            registry=registry if do.get("replay", True) else None,
            model=do["model"],
            status=StatusProof.from_bytes(base64.b64decode(do["status"])) if "status" in do else None,
        )
    except VerificationError as error:
        return {"check": error.check, "words": str(error)}
    return None


@pytest.mark.parametrize(("family", "case"), ALL, ids=IDS)
def test_it_is_refused_for_the_reason_that_it_names_and_nothing_changes(
    family: str, case: dict[str, Any]
) -> None:
    registry = Registry.replay(entries_of(case), policy_of(case))
    if case.get("policy", "policy.toml") == "policy.toml":
        assert registry.num_refused == 0, registry.refused
    known = snapshot(registry)
    refused, expected = attempt(case, registry), case["refused"]
    if expected is None:
        assert family == "limits" and refused is None
        return
    assert refused is not None, "it went through"
    assert expected.get("words", "") in refused.pop("words", "")
    assert refused == {key: value for key, value in expected.items() if key != "words"}
    assert snapshot(registry) == known


APPLIED = [
    (identifier, case)
    for identifier, (family, case) in zip(IDS, ALL, strict=True)
    if "apply" in case["do"] and family != "limits" and len(entries_of(case)) <= LONGEST_LOG
]


def test_what_the_registry_refuses_is_not_appended_to_a_log(tmp_path: Path) -> None:
    """Each such case on a log of its own; its size stays as it was."""
    assert len(APPLIED) > 60
    for number, (identifier, case) in enumerate(APPLIED):
        path, policy = tmp_path / str(number), policy_of(case)
        with LogWriter(path, NoteSigner(policy.log_key.name, LOG), create=True) as log:
            if case["log"]:
                log.append(entries_of(case))
            before = LogReader(path, [policy.log_key]).signed_checkpoint() if case["log"] else None
            with pytest.raises(EventError) as caught:
                append_event(log, policy, expand(case["do"]["apply"]))
        assert caught.value.why == case["refused"]["why"], identifier
        reader = LogReader(path, [policy.log_key])
        assert len(list(reader.entries())) == len(case["log"]), identifier
        assert before is None or reader.signed_checkpoint() == before


def test_the_corpus_is_what_its_script_writes() -> None:
    assert {path.name: path.read_text() for path in CASES.iterdir()} == files()


def test_there_are_enough_of_them_and_no_name_stands_twice() -> None:
    assert len([family for family, _ in ALL if family != "limits"]) >= 60
    assert len(set(IDS)) == len(IDS)
