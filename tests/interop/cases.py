"""The cases that other people's clients are given: one good log with proofs, and the same with one thing changed.

Each case is a folder:

    FOLDER/good/case.json        what is claimed; bytes are base64
    FOLDER/good/log/             the log, as a static server would serve it; an Ed25519 and an ML-DSA-44 witness cosigned
    FOLDER/good/old.checkpoint   a signed checkpoint of the first 300 entries
    FOLDER/good/entry            the bytes of entry 433
    FOLDER/good/vkey             the log's verifier key
    FOLDER/good/proof.tlog-proof c2sp.org/tlog-proof of entry 433

A client must accept `good`, and refuse a changed case if it performs the check that the change is aimed at.
"""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from fieldprint.note import Cosigner, NoteSigner, sign_note, signature_line
from fieldprint.tlog import Checkpoint, LogProof, LogReader, LogWriter
from fieldprint.tlog.tile import bundle_path, tile_path

ORIGIN = "interop.example/log"
SIZE, OLD_SIZE, INDEX = 600, 300, 433
COSIGNED_AT = 1_800_000_000
Case = dict[str, Any]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def good(folder: Path) -> Case:
    """Write the log into `folder`/log and return what is claimed of it."""
    signer = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    entries = [json.dumps({"a": i, "k": "kv"}).encode() for i in range(SIZE)]
    with LogWriter(folder / "log", signer, create=True) as log:
        old = log.append(entries[:OLD_SIZE]).checkpoint
        log.append(entries[OLD_SIZE:])
    (folder / "log/.lock").unlink()
    reader = LogReader(folder / "log", [signer.verifier_key])
    head = reader.checkpoint().to_text()
    cosigners = (
        Cosigner("interop.example/north", Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))),
        Cosigner("interop.example/lattice", MLDSA44PrivateKey.from_seed_bytes(bytes(range(3, 35)))),
    )
    lines = [signature_line(c.name, c.cosign(head.encode(), COSIGNED_AT)) for c in cosigners]
    return {
        "vkey": str(signer.verifier_key),
        "witnesses": [str(cosigner.verifier_key) for cosigner in cosigners],
        "public_key": text(signer.verifier_key.public_bytes),
        "origin": ORIGIN,
        "checkpoint": reader.signed_checkpoint().decode() + "".join(lines),
        "size": SIZE,
        "root": text(reader.checkpoint().root_hash),
        "index": INDEX,
        "leaf": text(entries[INDEX]),
        "proof": [text(h) for h in reader.inclusion_proof(INDEX)],
        "old_checkpoint": old.decode(),
        "old_size": OLD_SIZE,
        "old_root": text(reader.root_hash(OLD_SIZE)),
        "consistency": [text(h) for h in reader.consistency_proof(OLD_SIZE)],
    }


def flipped(encoded: str, position: int = 0) -> str:
    """base64 of the same bytes with one bit changed."""
    data = bytearray(base64.b64decode(encoded))
    data[position] ^= 1
    return text(bytes(data))


def _note(case: Case, change: Callable[[str], str]) -> None:
    case["checkpoint"] = change(case["checkpoint"])


def _signature(note: str, line: int, position: int) -> str:
    """The note with one bit changed in its signature line `line`."""
    text, _, block = note.partition("\n\n")
    lines = block.splitlines()
    head, _, signature = lines[line].rpartition(" ")
    lines[line] = f"{head} {flipped(signature, position)}"
    return f"{text}\n\n" + "".join(line + "\n" for line in lines)


def _stranger(_: str) -> str:
    stranger = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
    return sign_note(Checkpoint(ORIGIN, SIZE, bytes(32)).to_text(), [stranger]).decode()


def _list(case: Case, name: str, change: Callable[[list[str]], list[str]]) -> None:
    case[name] = change(list(case[name]))


@dataclass(frozen=True)
class Change:
    """One thing that is changed, and the check of a client that must notice."""

    name: str
    check: str  # checkpoint, cosignature, ml-dsa, inclusion, consistency, tiles or entries
    to_case: Callable[[Case], None] = lambda case: None
    file: str = ""  # a file of the log in which one bit is changed
    position: int = 0


CHANGES = (
    Change(
        "the checkpoint's root", "checkpoint", lambda c: _note(c, lambda n: n.replace(c["root"], flipped(c["root"])))
    ),
    Change("the checkpoint's size", "checkpoint", lambda c: _note(c, lambda n: n.replace("\n600\n", "\n601\n"))),
    Change("the checkpoint's signature", "checkpoint", lambda c: _note(c, lambda n: _signature(n, 0, 40))),
    Change("the checkpoint signed by a stranger", "checkpoint", lambda c: _note(c, _stranger)),
    Change("a cosignature", "cosignature", lambda c: _note(c, lambda n: _signature(n, 1, 40))),
    Change("a cosignature's time", "cosignature", lambda c: _note(c, lambda n: _signature(n, 1, 11))),
    Change("an ML-DSA-44 cosignature", "ml-dsa", lambda c: _note(c, lambda n: _signature(n, 2, 400))),
    Change("an ML-DSA-44 cosignature's time", "ml-dsa", lambda c: _note(c, lambda n: _signature(n, 2, 11))),
    Change("the entry", "inclusion", lambda c: c.update(leaf=flipped(c["leaf"]))),
    Change("the index", "inclusion", lambda c: c.update(index=INDEX - 1)),
    Change("a hash of the inclusion proof", "inclusion", lambda c: _list(c, "proof", lambda p: [flipped(p[0]), *p[1:]])),
    Change("an inclusion proof cut short", "inclusion", lambda c: _list(c, "proof", lambda p: p[:-1])),
    Change("an inclusion proof too long", "inclusion", lambda c: _list(c, "proof", lambda p: [*p, p[0]])),
    Change("the old root", "consistency", lambda c: c.update(old_root=flipped(c["old_root"]))),
    Change(
        "a hash of the consistency proof",
        "consistency",
        lambda c: _list(c, "consistency", lambda p: [*p[:-1], flipped(p[-1])]),
    ),
    Change("a consistency proof cut short", "consistency", lambda c: _list(c, "consistency", lambda p: p[:-1])),
    Change("a byte of a tile", "tiles", file=tile_path(0, 1), position=(432 - 256) * 32 + 5),
    Change("a byte of a tile above", "tiles", file=tile_path(1, 0, 2), position=3),
    Change("a byte of a bundle", "entries", file=bundle_path(1), position=(433 - 256) * 23 + 9),
)  # fmt: skip


def write_cases(folder: Path) -> list[Path]:
    """Write the good case and every changed one; their folders, the good one first."""
    shutil.rmtree(folder, ignore_errors=True)
    first = folder / "good"
    first.mkdir(parents=True)
    case = {"name": "good", "check": None, **good(first)}
    _write(first, case)
    folders = [first]
    for number, change in enumerate(CHANGES, 1):
        target = folder / f"changed-{number:02d}"
        shutil.copytree(first / "log", target / "log")
        changed = json.loads(json.dumps({**case, "name": change.name, "check": change.check}))
        change.to_case(changed)
        if change.file:
            data = bytearray((target / "log" / change.file).read_bytes())
            data[change.position] ^= 1
            (target / "log" / change.file).write_bytes(data)
        _write(target, changed)
        folders.append(target)
    return folders


def _write(folder: Path, case: Case) -> None:
    proof = tuple(base64.b64decode(h) for h in case["proof"])
    (folder / "case.json").write_text(json.dumps(case, indent=1))
    (folder / "log/checkpoint").write_text(case["checkpoint"])
    (folder / "old.checkpoint").write_text(case["old_checkpoint"])
    (folder / "entry").write_bytes(base64.b64decode(case["leaf"]))
    (folder / "vkey").write_text(case["vkey"] + "\n")
    (folder / "proof.tlog-proof").write_bytes(
        LogProof(case["index"], proof, case["checkpoint"].encode()).to_bytes()
    )
