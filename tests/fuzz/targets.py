"""What is fuzzed: every parser of bytes from outside. A target may raise only what is declared; its seeds are the vectors.

Each target also holds its parser to a law: what was accepted and is written again gives the same bytes, or parses alike.
"""

import base64
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldprint.anchor import AnchorArtifact, Envelope, Policy
from fieldprint.audit import AuditState, EntryCheck
from fieldprint.commit import Commitment, Receipt
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.note import VerifierKey, parse_note, verify_note
from fieldprint.registry import Registry
from fieldprint.registry.events import PARSERS
from fieldprint.tlog import (
    AbsenceProof,
    Checkpoint,
    LogProof,
    PresenceProof,
    StatusTree,
    TrustPolicy,
    leaf_hash,
    merkle,
    verify_absent,
    verify_present,
)
from fieldprint.tlog.audit import LogAudit
from fieldprint.tlog.serve import LogSite
from fieldprint.tlog.tile import decode_bundle, decode_tile, encode_bundle
from fieldprint.tlog.trust import KnownLog
from fieldprint.tlog.witness import AddCheckpoint
from fieldprint.verify import verify_receipt

VECTORS = Path(__file__).parent.parent / "vectors"
DECLARED = FieldprintError
raw = base64.b64decode


def rows(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())
    return found


SETTING = json.loads((VECTORS / "policy.json").read_text())
POLICY = Policy.from_bytes(SETTING["policy"].encode())
LOGS = json.loads((VECTORS / "log/logs.json").read_text())
TRUST = TrustPolicy((KnownLog(VerifierKey.parse(LOGS["vkey"])),))

REVOKED = [bytes([i]) * 32 for i in range(1, 6)]
ABSENT = bytes([7]) * 32
STATUS = StatusTree(REVOKED)


@dataclass(frozen=True)
class Target:
    """A parser under test."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def note(data: bytes) -> None:
    parse_note(data)
    assert data.decode().startswith(verify_note(data, [POLICY.log_key]))


def checkpoint(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert Checkpoint.from_text(text).to_text() == text


def verifier_key(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert str(VerifierKey.parse(text)) == text


def tile(data: bytes) -> None:
    assert b"".join(decode_tile(data[1:], 1 + data[0] if data else 1)) == data[1:]


def bundle(data: bytes) -> None:
    assert encode_bundle(decode_bundle(data[1:], 1 + data[0] if data else 1)) == data[1:]


def receipt(data: bytes) -> None:
    from datetime import UTC, datetime

    assert Receipt.from_bytes(data).to_bytes() == data
    verify_receipt(data, POLICY, now=datetime(2026, 11, 24, 12, tzinfo=UTC))


def leaf(data: bytes) -> None:
    assert Commitment.from_bytes(data).to_bytes() == data


def envelope(data: bytes) -> None:
    parsed = Envelope.from_bytes(data)
    assert parsed.to_bytes() == data
    artifact(parsed.payload)


def artifact(data: bytes) -> None:
    assert AnchorArtifact.from_bytes(data).to_bytes() == data


def statement(data: bytes) -> None:
    """Of at most one kind, and written again alike."""
    read = []
    for parse in PARSERS.values():
        try:
            read.append(parse(data))
        except FormatError:
            continue
    if not read:
        raise FormatError("of no kind")
    (made,) = read
    assert made.to_bytes() == data


def registry(data: bytes) -> None:
    """Each entry is believed, refused or no event; what is refused leaves no anchor behind."""
    entries = data.split(b"\n")
    found = Registry.replay(entries, POLICY)
    assert found.position == len(entries)
    assert len(found.anchors) == found.believed["sign"] and len(found.revoked) == found.believed["revoke"]


def policy(data: bytes) -> None:
    parsed = Policy.from_bytes(data)
    assert Policy.from_bytes(parsed.to_bytes()) == parsed


def trust_policy(data: bytes) -> None:
    parsed = TrustPolicy.from_bytes(data)
    assert TrustPolicy.from_bytes(parsed.to_bytes()) == parsed


def log_proof(data: bytes) -> None:
    assert LogProof.from_bytes(data).to_bytes() == data


def status_proof(data: bytes) -> None:
    """No digest of the set is proved absent and no other present, whatever the proof."""
    if b"presence" in data:
        present = PresenceProof.from_bytes(data)
        assert present.to_bytes() == data
        verify_present(ABSENT, present, STATUS.root, len(STATUS))
    else:
        absent = AbsenceProof.from_bytes(data)
        assert absent.to_bytes() == data
        verify_absent(REVOKED[1], absent, STATUS.root, len(STATUS))
    raise AssertionError("what is not so was proved")


def witness_request(data: bytes) -> None:
    assert AddCheckpoint.from_bytes(data).to_bytes() == data


def entry(data: bytes) -> None:
    check = EntryCheck(POLICY)
    for index, part in enumerate(data.split(b"\n")):
        check.add(index, part, leaf_hash(part))
    assert check.counts.total() == data.count(b"\n") + 1


def audit_state(data: bytes) -> None:
    assert AuditState.from_bytes(data, TRUST, None).to_bytes() == data


class Patched:
    """The log of 300 entries, one file of it replaced."""

    place = "memory"

    def __init__(self, data: bytes) -> None:
        self.files = {name: raw(text) for name, text in LOGS["logs"]["300"].items()}
        self.name = sorted(self.files)[data[0] % len(self.files)] if data else "checkpoint"
        self.same = self.files[self.name] == data[1:]
        self.files[self.name] = data[1:]

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)


def audit(data: bytes) -> None:
    """The law of the audit: with a file replaced it passes only if the file is what it was."""
    source = Patched(data)
    for _ in LogAudit(source, TRUST).bundles():
        pass
    assert source.same, source.name


def proof(data: bytes) -> None:
    """Bounds, hashes; nothing that is not a proof may pass, and no other error may come out."""
    start, stop, size = (int.from_bytes(data[i : i + 8], "big", signed=True) for i in (0, 8, 16))
    hashes = [data[i : i + 32] for i in range(24, len(data), 32)]
    last = hashes.pop() if hashes else b""
    for check in (
        lambda: merkle.verify_inclusion(last, start, size, hashes, bytes(32)),
        lambda: merkle.verify_consistency(start, size, hashes, last, bytes(32)),
        lambda: merkle.verify_subtree(start, stop, size, hashes, last, bytes(32)),
    ):
        try:
            check()
        except FieldprintError:
            continue
        assert last == bytes(32) or size <= 0 or start == 0, "a root of zeros was reached"


def path(data: bytes) -> None:
    """No path asks the storage for anything but a file of a log."""
    asked: list[str] = []

    class Source:
        place = "memory"

        def read(self, name: str) -> bytes | None:
            asked.append(name)
            return None

    LogSite(Source()).answer("GET", data.decode("latin-1"))
    assert all(".." not in name and not name.startswith("/") for name in asked)


def fieldprint_file(data: bytes) -> None:
    from fieldprint.promote.fieldprint import Fieldprint

    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        file.write(data)
        file.flush()
        Fieldprint.load(Path(file.name))


def _fieldprint_seeds() -> Iterator[bytes]:
    import torch

    from fieldprint.promote.fieldprint import Fieldprint

    made = Fieldprint(torch.ones(1, 2, 3, 1, 4, dtype=torch.int8), torch.zeros(1, 2, 1, 4, dtype=torch.int8))
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "f")
        yield (Path(folder) / "f").read_bytes()


def _column(name: str, column: str) -> Callable[[], Iterator[bytes]]:
    return lambda: (raw(row[column]) for row in rows(name))


def _leaves() -> Iterator[bytes]:
    for row in rows("log/entries.json"):
        yield from map(raw, row["entries"])


def _states() -> Iterator[bytes]:
    from fieldprint.tlog.audit import Audited

    for name in ("0", "3", "300"):
        entries = EntryCheck(None)
        for index in range(int(name)):
            entries.add(index, b"entry", bytes(32))
        yield AuditState(Audited(raw(LOGS["logs"][name]["checkpoint"]), int(name)), entries).to_bytes()


def _patches() -> Iterator[bytes]:
    names = sorted(LOGS["logs"]["300"])
    return (bytes([i]) + raw(LOGS["logs"]["300"][name]) for i, name in enumerate(names))


def _proofs() -> Iterator[bytes]:
    for row in rows("log/subtree.json"):
        bounds = (row["start"], row["stop"], row["tree_size"])
        hashes = (*row["proof"], row["subtree_hash"])
        yield b"".join(n.to_bytes(8, "big", signed=True) for n in bounds) + b"".join(map(raw, hashes))


def _signed(make: Callable[[bytes], bytes]) -> Callable[[], Iterator[bytes]]:
    return lambda: (make(raw(files["checkpoint"])) for files in LOGS["logs"].values())


def _envelope_payloads() -> Iterator[bytes]:
    for row in rows("anchor.json"):
        try:
            yield Envelope.from_bytes(raw(row["anchor"])).payload
        except FieldprintError:
            continue


def _events() -> Iterator[bytes]:
    for row in rows("anchor.json"):
        yield from map(raw, row.get("entries", []))


def _statements() -> Iterator[bytes]:
    for entry in _events():
        if b'"envelope"' in entry and entry.endswith(b"}"):
            yield Envelope.from_bytes(raw(json.loads(entry)["envelope"])).payload


def _histories() -> Iterator[bytes]:
    return (b"\n".join(map(raw, row["entries"])) for row in rows("anchor.json") if row.get("entries"))


TARGETS = (
    Target("note", note, _column("note.json", "note")),
    Target("checkpoint", checkpoint, _column("log/checkpoint.json", "text")),
    Target("verifier_key", verifier_key, lambda: iter([POLICY.log.encode(), LOGS["vkey"].encode()])),
    Target("tile", tile, lambda: (bytes([min(255, r["width"] - 1)]) + raw(r["data"])[:9000] for r in rows("log/tile.json"))),
    Target("bundle", bundle, lambda: (bytes([min(255, r["width"] - 1)]) + raw(r["data"])[:9000] for r in rows("log/tile.json"))),
    Target("receipt", receipt, _column("receipt.json", "receipt")),
    Target("leaf", leaf, _leaves),
    Target("entry", entry, lambda: (b"\n".join(map(raw, row["entries"])) for row in rows("log/entries.json"))),
    Target("envelope", envelope, _column("anchor.json", "anchor")),
    Target("artifact", artifact, _envelope_payloads),
    Target("statement", statement, _statements),
    Target("registry", registry, _histories),
    Target("policy", policy, lambda: iter([SETTING["policy"].encode()])),
    Target("trust_policy", trust_policy, lambda: iter([TRUST.to_bytes()])),
    Target("log_proof", log_proof, _signed(lambda c: LogProof(5, (bytes(32), bytes(32)), c, b"extra").to_bytes())),
    Target("status_proof", status_proof, lambda: iter([STATUS.prove_absent(ABSENT).to_bytes(), STATUS.prove_present(REVOKED[1]).to_bytes()])),
    Target("witness_request", witness_request, _signed(lambda c: AddCheckpoint(3, (bytes(32),), c).to_bytes())),
    Target("audit_state", audit_state, _states),
    Target("audit", audit, _patches),
    Target("proof", proof, _proofs),
    Target("path", path, lambda: (raw(r["request"]).split(b" ")[1][:200] for r in rows("log/request.json") if b" /" in raw(r["request"])[:9])),
    Target("fieldprint_file", fieldprint_file, _fieldprint_seeds),
)  # fmt: skip


def judge(target: Target, data: bytes) -> None:
    """Run the target; only declared errors are swallowed."""
    try:
        target.run(data)
    except DECLARED:
        return
