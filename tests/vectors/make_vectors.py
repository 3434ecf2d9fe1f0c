"""Writes the attack vectors beside it: what a verifier must accept and what it must refuse, for any implementation.

Everything is fixed (keys, salts, times), so a run gives the same bytes (test_vectors holds the files to it). Each file is
a list of objects with `desc`, `want_error` (null, or the number of the check that must fail) and the inputs; bytes are
base64. The policy and the time of every check are in policy.json.
"""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import (
    AnchorArtifact,
    Envelope,
    FieldprintRecord,
    KindRule,
    Policy,
    sign_anchor,
    sign_envelope,
)
from fieldprint.commit import Commitment, LeafProof, Receipt, request_digest, text_digest, tokens_digest
from fieldprint.note import NoteSigner, sign_note
from fieldprint.tlog import Checkpoint, leaf_hash, merkle

FOLDER = Path(__file__).parent
OWNER, SECOND, STRANGER, LOG, OTHER_LOG = (
    Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(1, 6)
)
SIGNER = NoteSigner("vectors.example/log", LOG)
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MODEL = "ab" * 32
Vector = dict[str, Any]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def policy() -> Policy:
    keys = {"owner": OWNER.public_key().public_bytes_raw(), "second": SECOND.public_key().public_bytes_raw()}
    kinds = {
        "identity": KindRule(("owner",), 1, 100, 60, ("untrusted",)),
        "policy": KindRule(("owner", "second"), 2, 512, 60),
    }
    return Policy(keys, kinds, ("owner",), 1, str(SIGNER.verifier_key))


RECORD = FieldprintRecord(MODEL, "chat-system", 63, "cd" * 32, 30, 3, 64, 16, "int8-pow2-v1", "ef" * 32)
ANCHOR = AnchorArtifact(
    "facts", "identity", "Your codename is Falcon.", NOW, NOW + 30 * DAY, fieldprints=(RECORD,)
)
TWO = replace(ANCHOR, kind="policy")


def anchors() -> list[Vector]:
    good = sign_anchor(ANCHOR, [OWNER])
    envelope = Envelope.from_bytes(good)
    two = Envelope.from_bytes(sign_anchor(TWO, [OWNER]))
    twice = replace(two, signatures=two.signatures * 2)
    signature = envelope.signatures[0]
    moved = replace(two, signatures=(*two.signatures, (two.signatures[0][0][::-1], two.signatures[0][1])))
    rows: list[tuple[str, int | None, bytes]] = [
        ("good", None, good),
        ("good, threshold of two met", None, sign_anchor(TWO, [OWNER, SECOND])),
        ("a second signature by an unknown key is ignored", None, sign_anchor(ANCHOR, [OWNER, STRANGER])),
        ("empty file", 1, b""),
        ("cut off", 1, good[:-1]),
        ("a byte behind the end", 1, good + b"\n"),
        ("not canonical: a space", 1, good.replace(b":", b": ", 1)),
        ("an unknown field in the envelope", 1, rfc8785.dumps(json.loads(good) | {"x": 1})),
        (
            "another payload type, signed",
            1,
            sign_envelope("text/plain", envelope.payload, [OWNER]).to_bytes(),
        ),
        ("payload not canonical, signed", 2, _signed(ANCHOR.to_bytes().replace(b":", b": ", 1))),
        ("text changed, subject kept, signed", 2, _signed(ANCHOR.to_bytes().replace(b"Falcon", b"Heron!"))),
        ("an unknown field in the artifact, signed", 2, _signed(_with(ANCHOR.to_bytes(), note="x"))),
        ("kind without a rule", 3, sign_anchor(replace(ANCHOR, kind="memory"), [OWNER])),
        ("signed by a stranger", 4, sign_anchor(ANCHOR, [STRANGER])),
        ("signed by a trusted key of another kind", 4, sign_anchor(ANCHOR, [SECOND])),
        ("another text under the old signature", 4, replace(envelope, payload=_other()).to_bytes()),
        ("one signature of two", 4, two.to_bytes()),
        ("one key twice does not make two", 4, twice.to_bytes()),
        ("one signature under two names", 4, moved.to_bytes()),
        ("signature of zeros", 4, replace(envelope, signatures=((signature[0], bytes(64)),)).to_bytes()),
        ("tainted", 5, sign_anchor(replace(ANCHOR, taint=("untrusted",)), [OWNER])),
        ("not yet valid", 6, sign_anchor(replace(ANCHOR, not_before=NOW + DAY), [OWNER])),
        (
            "expired this second",
            6,
            sign_anchor(replace(ANCHOR, not_before=NOW - DAY, not_after=NOW), [OWNER]),
        ),
        ("valid for too long", 6, sign_anchor(replace(ANCHOR, not_after=NOW + 61 * DAY), [OWNER])),
        (
            "too many tokens",
            7,
            sign_anchor(replace(ANCHOR, fieldprints=(replace(RECORD, num_tokens=101),)), [OWNER]),
        ),
        (
            "another model",
            10,
            sign_anchor(replace(ANCHOR, fieldprints=(replace(RECORD, model="00" * 32),)), [OWNER]),
        ),
        ("no model", 10, sign_anchor(replace(ANCHOR, fieldprints=()), [OWNER])),
    ]
    return [{"desc": d, "want_error": e, "anchor": text(a), "model": MODEL} for d, e, a in rows]


def _signed(payload: bytes) -> bytes:
    return sign_envelope("application/vnd.in-toto+json", payload, [OWNER]).to_bytes()


def _with(payload: bytes, **changes: Any) -> bytes:
    fields = json.loads(payload)
    fields["predicate"] |= changes
    return rfc8785.dumps(fields)


def _other() -> bytes:
    return replace(ANCHOR, text="Your codename is Heron.").to_bytes()


def tree(entries: list[bytes]) -> merkle.HashReader:
    def read(level: int, index: int) -> bytes:
        return merkle.fold([leaf_hash(e) for e in entries[index << level : (index + 1) << level]])

    return read


def story(
    salt: bytes = bytes(range(16)), answer: str = "The answer.", model: str = MODEL
) -> tuple[list[bytes], Receipt]:
    """A log of ten entries with three leaves of one request in it, and the receipt."""
    prompt, tokens = tuple(range(20)), tuple(range(100, 117))
    whole, previous, leaves = prompt + tokens, None, []
    for page in range(3):
        start, end = page * 16, min(page * 16 + 16, len(whole))
        leaf = Commitment(
            request=request_digest(salt, prompt),
            page=page,
            start=start,
            end=end,
            prompt_len=len(prompt),
            tokens=tokens_digest(salt, start, whole[start:end]),
            kv=f"{page:064x}",
            anchor=ANCHOR.digest,
            fieldprint=RECORD.root,
            model=model,
            sampler={"method": "greedy"},
            attention={"g": "0.0", "num_sinks": 0, "operator": "floor", "window": None},
            previous=previous,
            text=text_digest(salt, answer) if page == 2 else None,
        ).to_bytes()
        leaves.append(leaf)
        previous = leaf_hash(leaf).hex()
    entries = [b"entry %d" % i for i in range(4)] + leaves + [b"entry %d" % i for i in range(7, 10)]
    proofs = tuple(
        LeafProof(4 + i, leaf, tuple(merkle.prove_inclusion(4 + i, 10, tree(entries))))
        for i, leaf in enumerate(leaves)
    )
    note = checkpoint(entries).decode()
    return entries, Receipt(note, proofs, salt, prompt, tokens, answer, sign_anchor(ANCHOR, [OWNER]))


def checkpoint(entries: list[bytes], signer: NoteSigner = SIGNER, origin: str = SIGNER.name) -> bytes:
    root = merkle.tree_hash(len(entries), tree(entries))
    return sign_note(Checkpoint(origin, len(entries), root).to_text(), [signer])


def receipts() -> list[Vector]:
    entries, good = story()
    first, middle, last = good.leaves
    elsewhere = NoteSigner("vectors.example/other", OTHER_LOG)
    impostor = NoteSigner(SIGNER.name, OTHER_LOG)
    shorter = checkpoint(entries[:9]).decode()
    other_model = story(model="00" * 32)[1]
    rows: list[tuple[str, int | None, bytes]] = [
        ("good", None, good.to_bytes()),
        ("empty file", 1, b""),
        ("a byte behind the end", 1, good.to_bytes() + b"\n"),
        ("version true", 1, good.to_bytes().replace(b'"v":1}', b'"v":true}')),
        ("no leaves", 1, rfc8785.dumps(json.loads(good.to_bytes()) | {"leaves": []})),
        ("checkpoint of another log", 2, replace(good, checkpoint=checkpoint(entries, elsewhere).decode()).to_bytes()),
        ("checkpoint under the log's name by another key", 2, replace(good, checkpoint=checkpoint(entries, impostor).decode()).to_bytes()),
        ("another origin, signed by the log's key", 2, replace(good, checkpoint=checkpoint(entries, origin="x.example/log").decode()).to_bytes()),
        ("checkpoint not signed", 2, replace(good, checkpoint=good.checkpoint.split("\n\n")[0] + "\n\n").to_bytes()),
        ("checkpoint of a smaller tree", 3, replace(good, checkpoint=shorter).to_bytes()),
        ("a leaf at another index", 3, replace(good, leaves=(replace(first, index=5), middle, last)).to_bytes()),
        ("an index beyond the tree", 3, replace(good, leaves=(replace(first, index=10), middle, last)).to_bytes()),
        ("a proof cut short", 3, replace(good, leaves=(replace(first, proof=first.proof[:-1]), middle, last)).to_bytes()),
        ("a proof too long", 3, replace(good, leaves=(replace(first, proof=(*first.proof, bytes(32))), middle, last)).to_bytes()),
        ("a hash of 31 bytes", 3, replace(good, leaves=(replace(first, proof=(bytes(31), *first.proof[1:])), middle, last)).to_bytes()),
        ("a leaf that is not in the log", 3, replace(good, leaves=(replace(first, leaf=first.leaf.replace(b"greedy", b"Greedy")), middle, last)).to_bytes()),
        ("the last leaf left out", 4, replace(good, leaves=(first, middle)).to_bytes()),
        ("the first leaf left out", 4, replace(good, leaves=(middle, last)).to_bytes()),
        ("two leaves swapped", 4, replace(good, leaves=(first, last, middle)).to_bytes()),
        ("a leaf twice", 4, replace(good, leaves=(first, first, middle, last)).to_bytes()),
        ("an entry that is no leaf", 4, replace(good, leaves=(LeafProof(0, b"entry 0", tuple(merkle.prove_inclusion(0, 10, tree(entries)))),)).to_bytes()),
        ("a token more", 4, replace(good, tokens=(*good.tokens, 5)).to_bytes()),
        ("a token of the answer moved to the prompt", 4, replace(good, prompt=(*good.prompt, good.tokens[0]), tokens=good.tokens[1:]).to_bytes()),
        ("another prompt", 5, replace(good, prompt=(9, *good.prompt[1:])).to_bytes()),
        ("another token", 5, replace(good, tokens=(*good.tokens[:-1], 9)).to_bytes()),
        ("another salt", 5, replace(good, salt=bytes(16)).to_bytes()),
        ("another text", 6, replace(good, text="Another answer.").to_bytes()),
        ("the anchor left out", 7, replace(good, anchor=None).to_bytes()),
        ("another anchor, well signed", 7, replace(good, anchor=sign_anchor(replace(ANCHOR, name="b"), [OWNER])).to_bytes()),
        ("the anchor under another signature", 7, replace(good, anchor=sign_anchor(ANCHOR, [STRANGER])).to_bytes()),
        ("leaves of a model that the anchor is not signed for", 7, other_model.to_bytes()),
    ]  # fmt: skip
    return [{"desc": d, "want_error": e, "receipt": text(r)} for d, e, r in rows]


def inclusions() -> list[Vector]:
    found: list[Vector] = []

    def add(
        desc: str, error: int | None, leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes
    ) -> None:
        inputs = {"leaf_hash": text(leaf), "index": index, "tree_size": size, "root_hash": text(root)}
        found.append({"desc": desc, "want_error": error, **inputs, "proof": [text(h) for h in proof]})

    entries = [b"entry %d" % i for i in range(13)]
    read, root = tree(entries), merkle.tree_hash(13, tree(entries))
    for index in (0, 7, 8, 11, 12):
        proof = merkle.prove_inclusion(index, 13, read)
        add(f"good, entry {index} of 13", None, leaf_hash(entries[index]), index, 13, proof, root)
    add("good, the only entry", None, leaf_hash(b"x"), 0, 1, [], leaf_hash(b"x"))
    leaf, proof = leaf_hash(entries[5]), merkle.prove_inclusion(5, 13, read)
    add("index = size", 1, leaf, 13, 13, proof, root)
    add("a negative index", 1, leaf, -1, 13, proof, root)
    add("an empty tree", 1, leaf, 0, 0, [], root)
    add("a proof cut short", 1, leaf, 5, 13, proof[:-1], root)
    add("a proof too long", 1, leaf, 5, 13, [*proof, bytes(32)], root)
    add("a hash of 31 bytes", 1, leaf, 5, 13, [proof[0][:31], *proof[1:]], root)
    add("a root of 33 bytes", 1, leaf, 5, 13, proof, root + b"\0")
    add("the neighbour's index", 2, leaf, 4, 13, proof, root)
    add("two hashes swapped", 2, leaf, 5, 13, [proof[1], proof[0], *proof[2:]], root)
    add("a changed hash", 2, leaf, 5, 13, [bytes(32), *proof[1:]], root)
    add("another leaf", 2, leaf_hash(b"other"), 5, 13, proof, root)
    add("another root", 2, leaf, 5, 13, proof, merkle.tree_hash(12, read))
    children = leaf_hash(entries[4]) + leaf_hash(entries[5])
    add("an inner node's children passed off as an entry", 2, leaf_hash(children), 2, 7, proof[1:], root)
    return found


def consistencies() -> list[Vector]:
    found: list[Vector] = []
    entries = [b"entry %d" % i for i in range(13)]
    read = tree(entries)
    roots = [merkle.tree_hash(n, read) for n in range(14)]

    def add(
        desc: str, error: int | None, a: int, b: int, proof: list[bytes], root1: bytes, root2: bytes
    ) -> None:
        inputs = {"size1": a, "size2": b, "root1": text(root1), "root2": text(root2)}
        found.append({"desc": desc, "want_error": error, **inputs, "proof": [text(h) for h in proof]})

    for a, b in ((0, 13), (1, 13), (4, 13), (6, 13), (8, 9), (12, 13), (13, 13)):
        add(f"good, {a} to {b}", None, a, b, merkle.prove_consistency(a, b, read), roots[a], roots[b])
    proof = merkle.prove_consistency(6, 13, read)
    forked = merkle.tree_hash(13, tree([b"forged", *entries[1:]]))
    add("a forked history", 3, 6, 13, proof, roots[6], forked)
    add("another first root", 2, 6, 13, proof, roots[5], roots[13])
    add("sizes swapped", 1, 13, 6, proof, roots[13], roots[6])
    add("a negative size", 1, -1, 13, proof, roots[0], roots[13])
    add("empty proof between different sizes", 1, 6, 13, [], roots[6], roots[13])
    add("a proof cut short", 1, 6, 13, proof[:-1], roots[6], roots[13])
    add("a proof too long", 1, 6, 13, [*proof, bytes(32)], roots[6], roots[13])
    add("a hash of 31 bytes", 1, 6, 13, [proof[0][:31], *proof[1:]], roots[6], roots[13])
    add("equal sizes, other roots", 2, 13, 13, [], roots[13], forked)
    add("equal sizes with a proof", 2, 13, 13, proof, roots[13], roots[13])
    add("from the empty tree with a proof", 2, 0, 13, proof, roots[0], roots[13])
    add("from the empty tree, another empty root", 2, 0, 13, [], roots[1], roots[13])
    add("a changed hash", 2, 6, 13, [bytes(32), *proof[1:]], roots[6], roots[13])
    return found


def render() -> dict[str, str]:
    """File name to content."""
    setting = {"now": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"), "policy": policy().to_bytes().decode()}
    made: dict[str, Any] = {
        "policy.json": setting,
        "anchor.json": anchors(),
        "receipt.json": receipts(),
        "inclusion.json": inclusions(),
        "consistency.json": consistencies(),
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for name, content in render().items():
        (FOLDER / name).write_text(content)
