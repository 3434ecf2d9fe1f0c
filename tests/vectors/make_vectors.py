"""Writes the attack vectors beside it: what a verifier must accept and what it must refuse, for any implementation.

Everything is fixed (keys, salts, times), so a run gives the same bytes (test_vectors holds the files to it). Each file is
a list of objects with `desc`, `want_error` (null, or the number of the check that must fail) and the inputs; bytes are
base64. The policy and the time of every check are in policy.json. Where a vector has `entries`, the registry is what
replaying these log entries gives; else there is none. A note's check 1 is its form, check 2 its signatures; `text` is
what a good one says.
"""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import (
    AnchorArtifact,
    Endorsement,
    Envelope,
    FieldprintRecord,
    KindRule,
    Lift,
    Override,
    Policy,
    Registration,
    SignerRule,
    Supersession,
    sign_anchor,
    sign_envelope,
    sign_revocation,
    sign_statement,
)
from fieldprint.anchor.artifact import PREDICATE_TYPE, statement
from fieldprint.commit import Commitment, LeafProof, Receipt, request_digest, text_digest, tokens_digest
from fieldprint.note import NoteSigner, sign_note
from fieldprint.registry import Promotion, event_entry, registration_entry, revocation_entry
from fieldprint.tlog import Checkpoint, leaf_hash, merkle

FOLDER = Path(__file__).parent
OWNER, SECOND, STRANGER, LOG, OTHER_LOG, WARDEN = (
    Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(1, 7)
)
SIGNER = NoteSigner("vectors.example/log", LOG)
WITNESS = NoteSigner("vectors.example/witness", OTHER_LOG)
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MODEL = "ab" * 32
Vector = dict[str, Any]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def policy() -> Policy:
    named = {"owner": OWNER, "second": SECOND, "warden": WARDEN}
    keys = {name: key.public_key().public_bytes_raw() for name, key in named.items()}
    kinds = {
        "identity": KindRule(("owner",), 1, 100, 60, ("untrusted",)),
        "policy": KindRule(("owner", "second"), 2, 512, 60, models=(MODEL,)),
        "observation": KindRule(("owner",), 1, 100, 60, adds_taint=("untrusted",)),
    }
    return Policy(
        keys,
        kinds,
        ("owner",),
        1,
        str(SIGNER.verifier_key),
        endorsement={"untrusted": SignerRule(("owner", "second"), 2)},
        override=SignerRule(("warden",)),
    )


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
    rows += _more_anchors(envelope)
    found: list[Vector] = [
        {"desc": d, "want_error": e, "anchor": text(a), "model": MODEL} for d, e, a in rows
    ]
    for desc, error, entries in _histories():
        found.append({"desc": desc, "want_error": error, "anchor": text(good), "model": MODEL})
        found[-1]["entries"] = [text(entry) for entry in entries]
    for desc, error, signed, model, entries in _descents():
        found.append({"desc": desc, "want_error": error, "anchor": text(signed), "model": model})
        found[-1]["entries"] = [text(entry) for entry in entries]
    return found


def _more_anchors(envelope: Envelope) -> list[tuple[str, int | None, bytes]]:
    """Limits from both sides, and artifacts that are not well formed although the owner signed them."""
    fields = json.loads(envelope.to_bytes())
    first = fields["signatures"][0]
    payload = json.loads(ANCHOR.to_bytes())
    subject = payload["subject"][0]
    record = payload["predicate"]["fieldprints"][0]
    half = replace(RECORD, model="00" * 32, num_tokens=101)
    before = {"form": "chat-system-before", "num_tokens": 64}
    past = replace(ANCHOR, not_before=NOW - 31 * DAY)

    def signed(**changes: Any) -> bytes:
        return _signed(rfc8785.dumps(payload | changes))

    def predicate(**changes: Any) -> bytes:
        return _signed(_with(ANCHOR.to_bytes(), **changes))

    def records(*changes: dict[str, Any]) -> bytes:
        return predicate(fieldprints=[record | change for change in changes])

    def worded(words: str) -> bytes:
        """Well formed in everything but its words."""
        digest = sha256(words.encode()).hexdigest()
        return _signed(
            statement(PREDICATE_TYPE, "anchor/facts", digest, payload["predicate"] | {"text": words})
        )

    return [
        ("good, as many tokens as allowed", None, records({"num_tokens": 100})),
        ("good, valid for as long as allowed", None, sign_anchor(replace(ANCHOR, not_after=NOW + 60 * DAY), [OWNER])),
        ("good, in its last second", None, sign_anchor(replace(past, not_after=NOW + timedelta(seconds=1)), [OWNER])),
        ("no signatures", 1, rfc8785.dumps(fields | {"signatures": []})),
        ("33 signatures", 1, rfc8785.dumps(fields | {"signatures": [first] * 33})),
        ("a key id that is no text", 1, rfc8785.dumps(fields | {"signatures": [first, first | {"keyid": 5}]})),
        ("a signature in another spelling of base64", 1, rfc8785.dumps(fields | {"signatures": [first | {"sig": _respelled(first["sig"])}]})),
        ("a payload type that is no text", 1, rfc8785.dumps(fields | {"payloadType": 5})),
        ("another statement type, signed", 2, signed(_type="https://in-toto.io/Statement/v0.1")),
        ("another predicate type, signed", 2, signed(predicateType="urn:fieldprint:anchor:v2")),
        ("two subjects, signed", 2, signed(subject=[subject, subject])),
        ("another subject name, signed", 2, signed(subject=[subject | {"name": "anchor/rules"}])),
        ("a revocation in place of an anchor", 2, sign_revocation(ANCHOR.digest, "lost", NOW, [OWNER])),
        ("a time in another spelling", 2, predicate(notAfter="2026-12-24T12:00:0Z")),
        ("valid for no time", 2, predicate(notAfter="2026-11-24T12:00:00Z")),
        ("a label twice", 2, predicate(taint=["a", "a"])),
        ("labels not sorted", 2, predicate(taint=["b", "a"])),
        ("a text that is not in normal form C", 2, worded("e\u0301")),
        ("an invisible character in the text", 2, worded("fal\u200bcon")),
        ("one model twice", 2, records({}, {"root": "00" * 32})),
        ("an unknown field in a fieldprint", 2, records({"x": 1})),
        ("a fieldprint of no tokens", 2, records({"num_tokens": 0})),
        ("true in place of a number", 2, records({"num_tokens": True})),
        ("an unknown form", 2, records({"form": "chat-user"})),
        ("an unknown quantizer", 2, records({"quantizer": "int4"})),
        ("valid for too long, though not from now on", 6, sign_anchor(replace(past, not_after=NOW + 30 * DAY), [OWNER])),
        ("too many tokens under another model", 7, sign_anchor(replace(ANCHOR, fieldprints=(RECORD, half)), [OWNER])),
        ("good, with a second fieldprint before position 0", None, records(before, {})),
        ("good, of 96 tokens before position 0", None, records({}, before | {"num_tokens": 96})),
        ("only a fieldprint before position 0", 10, records(before)),
        ("before position 0, in blocks of 16 tokens", 2, records({}, before | {"num_tokens": 48})),
        ("two before position 0 for a model", 2, records(before, before | {"form": "raw-before"})),
        ("two at position 0 for a model", 2, records({}, {"form": "raw"})),
        ("too many tokens before position 0", 7, records({}, before | {"num_tokens": 128})),
    ]  # fmt: skip


def _histories() -> list[tuple[str, int | None, list[bytes]]]:
    """What a log may say of the good anchor, and what it says in vain."""

    def revoked(key: Ed25519PrivateKey, digest: str = ANCHOR.digest) -> bytes:
        return revocation_entry(sign_revocation(digest, "lost", NOW, [key]))

    older = ANCHOR.digest
    newer = replace(ANCHOR, name="newer", supersedes=(older,))
    other = replace(ANCHOR, name="newer", kind="observation", supersedes=(older,))
    known = [registered(ANCHOR)]

    envelope = Envelope.from_bytes(sign_revocation(ANCHOR.digest, "lost", NOW, [OWNER]))
    other_type = sign_envelope("text/plain", envelope.payload, [OWNER]).to_bytes()
    altered = Envelope.from_bytes(sign_revocation(TWO.digest, "lost", NOW, [OWNER]))
    pasted = replace(altered, payload=envelope.payload).to_bytes()
    return [
        ("good, registered", None, known),
        ("good, another anchor was revoked", None, [*known, revoked(OWNER, TWO.digest)]),
        ("a revocation by a stranger counts for nothing", None, [*known, revoked(STRANGER)]),
        ("a revocation by a key that may not revoke counts for nothing", None, [*known, revoked(SECOND)]),
        ("a revocation of another payload type counts for nothing", None, [*known, revocation_entry(other_type)]),
        ("a revocation under another's signature counts for nothing", None, [*known, revocation_entry(pasted)]),
        ("a revocation with a byte behind it counts for nothing", None, [*known, revoked(OWNER) + b"\n"]),
        ("a promotion of another kind supersedes nothing", None, [*known, registered(other), promoted(other)]),
        ("a promotion of version true supersedes nothing", None, [*known, registered(newer), promoted(newer).replace(b'"v":1}', b'"v":true}')]),
        ("a promotion of what is not registered supersedes nothing", None, [*known, promoted(newer)]),
        ("a promotion that says another kind than the registration supersedes nothing", None, [*known, registered(other), promoted(newer, anchor=other.digest)]),
        ("a supersession by a stranger counts for nothing", None, [*known, registered(newer), superseded(newer, STRANGER)]),
        ("a registration of a newer one alone supersedes nothing", None, [*known, registered(newer)]),
        ("revoked", 8, [b"no event", *known, revoked(STRANGER), revoked(OWNER), promoted(ANCHOR)]),
        ("revoked before it was registered", 8, [revoked(OWNER), *known]),
        ("superseded", 9, [b"no event", *known, registered(newer), promoted(newer)]),
        ("superseded before it was registered", 9, [registered(newer), promoted(newer), *known]),
        ("superseded by a statement", 9, [*known, registered(newer), superseded(newer, OWNER)]),
        ("superseded, then revoked", 8, [*known, registered(newer), promoted(newer), revoked(OWNER)]),
        ("an empty log", 11, []),
        ("registered by a stranger", 11, [registered(ANCHOR, STRANGER)]),
        ("registered as something else", 11, [_registered(replace(Registration.of(ANCHOR), name="other"))]),
        ("registered under another entry type", 11, [registered(ANCHOR).replace(b'"sign"', b'"promote"')]),
        ("a freeze of this anchor", 15, [*known, overridden("anchor", older)]),
        ("a bypass of its kind", 15, [*known, overridden("kind", "identity", action="bypass")]),
        ("a freeze of everything", 15, [overridden("all", "*"), *known]),
        ("a freeze that ends later", 15, [*known, overridden("all", "*", expires=NOW + timedelta(seconds=1))]),
        ("good, a freeze that has ended", None, [*known, overridden("all", "*", expires=NOW, time=NOW - DAY)]),
        ("good, a freeze of another kind", None, [*known, overridden("kind", "policy")]),
        ("good, a freeze by a key that signs anchors", None, [*known, overridden("all", "*", key=OWNER)]),
        ("good, a freeze that was lifted", None, [*known, overridden("all", "*"), lifted(1)]),
        ("an old freeze does not come back by its lift", 15, [*known, overridden("all", "*"), lifted(1), overridden("all", "*", number=2), lifted(1)]),
    ]  # fmt: skip


def registered(artifact: AnchorArtifact, *keys: Ed25519PrivateKey) -> bytes:
    return _registered(Registration.of(artifact), *keys)


def _registered(registration: Registration, *keys: Ed25519PrivateKey) -> bytes:
    return registration_entry(sign_statement(registration, keys or (OWNER,)))


def promoted(artifact: AnchorArtifact, **changes: Any) -> bytes:
    made = Promotion(artifact.digest, "22" * 32, MODEL, artifact.kind, artifact.supersedes)
    return replace(made, **changes).to_entry()


def superseded(newer: AnchorArtifact, key: Ed25519PrivateKey) -> bytes:
    made = Supersession(newer.supersedes[0], newer.digest, "better", NOW)
    return event_entry("supersede", sign_statement(made, [key]))


def overridden(scope: Any, target: str, *, key: Ed25519PrivateKey = WARDEN, **changes: Any) -> bytes:
    values: dict[str, Any] = {"action": "freeze", "number": 1, "reason": "an alarm", "time": NOW}
    made = Override(scope=scope, target=target, **(values | changes))
    return event_entry("override", sign_statement(made, [key]))


def lifted(number: int) -> bytes:
    return event_entry("lift", sign_statement(Lift(number, "a false alarm", NOW), [WARDEN]))


def endorsed(artifact: AnchorArtifact, *keys: Ed25519PrivateKey) -> bytes:
    made = Endorsement(artifact.digest, ("untrusted",), "read by both", NOW)
    return event_entry("endorse", sign_statement(made, keys))


def _descents() -> list[tuple[str, int | None, bytes, str, list[bytes]]]:
    """Anchors that come from others, and an anchor with a model that its kind's rule does not name."""
    seen = replace(ANCHOR, name="seen", kind="observation")
    child = replace(ANCHOR, name="child", text="Read: Falcon.", parents=(seen.digest,))
    clean = replace(ANCHOR, name="clean", text="Be brief.")
    heir = replace(ANCHOR, name="heir", text="Be brief and kind.", parents=(clean.digest,))
    grandchild = replace(heir, name="grandchild", parents=(heir.digest,))
    twin = replace(ANCHOR, name="twin")
    own = replace(ANCHOR, name="own", taint=("untrusted",))
    half = replace(TWO, fieldprints=(RECORD, replace(RECORD, model="00" * 32)))
    revoked = revocation_entry(sign_revocation(clean.digest, "lost", NOW, [OWNER]))
    family = [registered(clean), registered(heir), registered(grandchild)]
    rows: list[tuple[str, int | None, AnchorArtifact, str, list[bytes]]] = [
        ("good, it comes from a clean anchor", None, heir, MODEL, family),
        ("it comes from an observation, which is tainted", 11, child, MODEL, [registered(seen), registered(child)]),
        ("good, its taint was endorsed away by both", None, child, MODEL, [registered(seen), endorsed(child, OWNER, SECOND), registered(child)]),
        ("good, its parent's taint was endorsed away", None, child, MODEL, [registered(seen), endorsed(seen, OWNER, SECOND), registered(child)]),
        ("endorsed by one of two", 11, child, MODEL, [registered(seen), endorsed(child, OWNER), registered(child)]),
        ("endorsed by one of two, twice", 11, child, MODEL, [registered(seen), endorsed(child, OWNER, OWNER), registered(child)]),
        ("endorsed too late", 11, child, MODEL, [registered(seen), registered(child), endorsed(child, OWNER, SECOND)]),
        ("an observation's text, signed anew as identity", 11, twin, MODEL, [registered(seen), registered(twin)]),
        ("good, that text was an identity's before an observation said it", None, twin, MODEL, [registered(twin), registered(seen)]),
        ("good, a label that it names itself was endorsed away", None, own, MODEL, [endorsed(own, OWNER, SECOND), registered(own)]),
        ("its own label, endorsed by one of two", 5, own, MODEL, [endorsed(own, OWNER), registered(own)]),
        ("its own label, endorsed and not registered", 5, own, MODEL, [endorsed(own, OWNER, SECOND)]),
        ("its own label, endorsed too late", 5, own, MODEL, [registered(own), endorsed(own, OWNER, SECOND)]),
        ("its parent is not registered", 11, heir, MODEL, [registered(heir)]),
        ("its parent was registered behind it", 11, heir, MODEL, [registered(heir), registered(clean)]),
        ("its parent was revoked before", 11, heir, MODEL, [registered(clean), revoked, registered(heir)]),
        ("its parent is revoked", 13, heir, MODEL, [*family, revoked]),
        ("its parent's parent is revoked", 13, grandchild, MODEL, [*family, revoked]),
        ("good, a child of it is revoked", None, clean, MODEL, [*family, revocation_entry(sign_revocation(heir.digest, "lost", NOW, [OWNER]))]),
        ("good, a model that the rule names", None, half, MODEL, [registered(half, OWNER, SECOND)]),
        ("a model that the rule does not name", 14, half, "00" * 32, [registered(half, OWNER, SECOND)]),
    ]  # fmt: skip
    keys = {"identity": [OWNER], "policy": [OWNER, SECOND]}
    return [
        (desc, error, sign_anchor(a, keys[a.kind]), model, entries) for desc, error, a, model, entries in rows
    ]


def _respelled(encoded: str) -> str:
    """The same bytes in a spelling of base64 that a lenient decoder takes: a spare bit set before the padding."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    stem = encoded.rstrip("=")
    return stem[:-1] + alphabet[alphabet.index(stem[-1]) + 1] + encoded[len(stem) :]


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
    salt: bytes = bytes(range(16)),
    answer: str = "The answer.",
    model: str = MODEL,
    anchor: AnchorArtifact | None = ANCHOR,
    changes: dict[int, dict[str, Any]] | None = None,
) -> tuple[list[bytes], Receipt]:
    """A log of ten entries with three leaves of one request in it, and the receipt.

    changes: fields of the leaves of these pages, as a log that lies would have committed them.
    """
    prompt, tokens = tuple(range(20)), tuple(range(100, 117))
    whole, previous, leaves = prompt + tokens, None, []
    for page in range(3):
        changed = (changes or {}).get(page, {})
        start, end = changed.get("start", page * 16), min(page * 16 + 16, len(whole))
        leaf = Commitment(
            request=request_digest(salt, prompt),
            page=page,
            start=start,
            end=end,
            prompt_len=len(prompt),
            tokens=tokens_digest(salt, start, whole[start:end]),
            kv=f"{page:064x}",
            anchor=anchor and anchor.digest,
            fieldprint=anchor and RECORD.root,
            model=model,
            sampler={"method": "greedy"},
            attention={"g": "0.0", "num_sinks": 0, "operator": "floor", "window": None},
            previous=previous,
            text=text_digest(salt, answer) if page == 2 else None,
        )
        leaf = replace(leaf, **changed).to_bytes()
        leaves.append(leaf)
        previous = leaf_hash(leaf).hex()
    entries = [b"entry %d" % i for i in range(4)] + leaves + [b"entry %d" % i for i in range(7, 10)]
    proofs = tuple(
        LeafProof(4 + i, leaf, tuple(merkle.prove_inclusion(4 + i, 10, tree(entries))))
        for i, leaf in enumerate(leaves)
    )
    note = checkpoint(entries).decode()
    signed = None if anchor is None else sign_anchor(anchor, [OWNER])
    return entries, Receipt(note, proofs, salt, prompt, tokens, answer, signed)


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
    rows += _lying_logs(good)
    found: list[Vector] = [{"desc": d, "want_error": e, "receipt": text(r)} for d, e, r in rows]
    for desc, error, history in _histories():
        if desc in ("revoked", "superseded", "a revocation by a stranger counts for nothing"):
            found.append({"desc": desc, "want_error": error and 7, "receipt": text(good.to_bytes())})
            found[-1]["entries"] = [text(entry) for entry in history]
    return found


def _lying_logs(good: Receipt) -> list[tuple[str, int | None, bytes]]:
    """Receipts in which every hash and signature is right, and what they cover is not."""
    bare_entries, bare = story(anchor=None)
    origin, size, root = bare.checkpoint.split("\n")[:3]
    expired = replace(ANCHOR, not_before=NOW - DAY, not_after=NOW)

    def spelled(words: str) -> bytes:
        """A checkpoint in these words, signed by the log."""
        return replace(bare, checkpoint=sign_note(words, [SIGNER]).decode()).to_bytes()

    def lied(*pages: int, anchor: AnchorArtifact | None = None, **fields: Any) -> bytes:
        return story(anchor=anchor, changes=dict.fromkeys(pages, fields))[1].to_bytes()

    other, settings = "99" * 32, {"method": "top-p"}
    return [
        ("good, without an anchor", None, bare.to_bytes()),
        ("good, an extension line in the checkpoint", None, spelled(f"{origin}\n{size}\n{root}\nmore\n")),
        ("good, cosigned by a key that the policy does not know", None, replace(bare, checkpoint=checkpoint(bare_entries).decode() + _line(WITNESS, "another text\n")).to_bytes()),
        ("size 010", 2, spelled(f"{origin}\n010\n{root}\n")),
        ("size +10", 2, spelled(f"{origin}\n+10\n{root}\n")),
        ("size -10", 2, spelled(f"{origin}\n-10\n{root}\n")),
        ("size 2^63", 2, spelled(f"{origin}\n{2**63}\n{root}\n")),
        ("no root", 2, spelled(f"{origin}\n{size}\n")),
        ("a root of 31 bytes", 2, spelled(f"{origin}\n{size}\n{text(base64.b64decode(root)[:31])}\n")),
        ("a root in another spelling of base64", 2, spelled(f"{origin}\n{size}\n{_respelled(root)}\n")),
        ("an empty line in the checkpoint", 2, spelled(f"{origin}\n{size}\n{root}\n\nmore\n")),
        ("the checkpoint's signature twice", 2, replace(good, checkpoint=good.checkpoint + good.checkpoint.split("\n\n")[1]).to_bytes()),
        ("the checkpoint's words changed", 2, replace(good, checkpoint=good.checkpoint.replace("\n10\n", "\n11\n")).to_bytes()),
        ("a leaf that names another leaf before it", 4, lied(1, previous=other)),
        ("a first leaf that names one before it", 4, lied(0, previous=other)),
        ("a page left out in counting", 4, lied(2, page=3)),
        ("a position left out between two leaves", 4, lied(1, start=17)),
        ("a position in two leaves", 4, lied(1, start=15)),
        ("a leaf of another request", 4, lied(1, request=other)),
        ("a leaf of another prompt's length", 4, lied(1, prompt_len=19)),
        ("all leaves of another prompt's length", 4, lied(0, 1, 2, prompt_len=19)),
        ("a leaf of another model", 4, lied(1, model=other)),
        ("a leaf under an anchor among leaves without", 4, story(anchor=None, changes={1: {"anchor": other}})[1].to_bytes()),
        ("a leaf with a fieldprint among leaves without", 4, lied(1, fieldprint=other)),
        ("a leaf of another sampler", 4, lied(1, sampler=settings)),
        ("a leaf of another attention", 4, lied(1, attention={"operator": "mixture"})),
        ("the answer ends twice", 4, lied(1, text=other)),
        ("the answer does not end", 4, lied(2, text=None)),
        ("leaves that name another prompt", 5, lied(0, 1, 2, request=other)),
        ("leaves with a fieldprint and no anchor", 7, lied(0, 1, 2, fieldprint=other)),
        ("leaves of another fieldprint", 7, lied(0, 1, 2, anchor=ANCHOR, fieldprint=other)),
        ("an anchor that the leaves do not name", 7, replace(bare, anchor=good.anchor).to_bytes()),
        ("an expired anchor", 7, lied(anchor=expired)),
    ]  # fmt: skip


def _line(signer: NoteSigner, signed: str, name: str | None = None) -> str:
    """The signature line over `signed`, by default under the signer's own name."""
    return f"\N{EM DASH} {name or signer.name} {text(signer.sign(signed.encode()))}\n"


def notes() -> list[Vector]:
    words = "vectors.example/log\nsome text\n"
    log, witness = str(SIGNER.verifier_key), str(WITNESS.verifier_key)
    own, cosigned = _line(SIGNER, words), _line(WITNESS, words)
    own_id, signature = SIGNER.verifier_key.key_id, SIGNER.sign(words.encode())[4:]
    impostor = NoteSigner(SIGNER.name, OTHER_LOG)
    stolen_id = own_id + impostor.sign(words.encode())[4:]
    witnesses = [NoteSigner(f"w{i}", OTHER_LOG) for i in range(100)]

    def by(name: str, data: bytes) -> str:
        return f"\N{EM DASH} {name} {text(data)}\n"

    def note(*lines: str, body: str = words) -> str:
        return body + "\n" + "".join(lines)

    rows: list[tuple[str, int | None, list[str], str | bytes]] = [
        ("good", None, [log], note(own)),
        ("good, signed by both keys", None, [log, witness], note(cosigned, own)),
        ("good, two keys trusted and one signed", None, [witness, log], note(own)),
        ("good, an empty line in the text", None, [log], note(_line(SIGNER, "a\n\nb\n"), body="a\n\nb\n")),
        ("good, the text has a line like a signature", None, [log], note(_line(SIGNER, words + cosigned), body=words + cosigned)),
        ("good, a false signature by an unknown key is ignored", None, [log], note(_line(WITNESS, "x\n"), own)),
        ("good, a short signature by an unknown key is ignored", None, [log], note(by("w", bytes(5)), own)),
        ("good, 100 signatures", None, [log], note(*(_line(w, words) for w in witnesses[:99]), own)),
        ("empty", 1, [log], ""),
        ("no signature lines", 1, [log], words + "\n"),
        ("no empty line", 1, [log], words + own),
        ("cut off before the last newline", 1, [log], note(own)[:-1]),
        ("a letter in place of the last newline", 1, [log], note(own)[:-1] + "x"),
        ("a line behind the end", 1, [log], note(own) + "x\n"),
        ("an empty line behind the end", 1, [log], note(own) + "\n"),
        ("one signature line twice", 1, [log], note(own, own)),
        ("an unknown key's signature line twice", 1, [log], note(cosigned, own, cosigned)),
        ("two signatures by one key", 1, [log], note(own, _line(SIGNER, "another text\n"))),
        ("101 signatures", 1, [log], note(*(_line(w, words) for w in witnesses), own)),
        ("a hyphen in place of the dash", 1, [log], note(own, cosigned.replace("\N{EM DASH}", "-"))),
        ("a signature in another spelling of base64", 1, [log], note(own.replace(text(own_id + signature), _respelled(text(own_id + signature))))),
        ("a signature that is not base64", 1, [log], note(own, "\N{EM DASH} w !!!!\n")),
        ("an unknown key's signature of 4 bytes", 1, [log], note(own, by("w", bytes(4)))),
        ("a signature line without a signature", 1, [log], note(own, "\N{EM DASH} w\n")),
        ("a signature line without a name", 1, [log], note(own, by("", bytes(68)))),
        ("a name with a plus sign", 1, [log], note(own, by("a+b", bytes(68)))),
        ("a tab in the text", 1, [log], note(_line(SIGNER, "a\tb\n"), body="a\tb\n")),
        ("lines that end in CR LF", 1, [log], note(_line(SIGNER, "a\r\n"), body="a\r\n")),
        ("not UTF-8", 1, [log], b"\xff" + note(own).encode()),
        ("no key is trusted", 2, [], note(own)),
        ("signed by another key only", 2, [log], note(cosigned)),
        ("signed under the log's name by another key", 2, [log], note(_line(impostor, words))),
        ("signed under the log's name and key id by another key", 2, [log], note(by(SIGNER.name, stolen_id))),
        ("the log's signature under another name", 2, [log], note(_line(SIGNER, words, "vectors.example/lot"))),
        ("the log's signature under another key id", 2, [log], note(by(SIGNER.name, bytes(4) + signature))),
        ("the log's signature of another text", 2, [log], note(_line(SIGNER, "another text\n"))),
        ("a letter of the text changed", 2, [log], note(own).replace("some", "same")),
        ("an empty line moved into the text", 2, [log], note(own, body=words + "\n")),
        ("a signature of zeros", 2, [log], note(by(SIGNER.name, own_id + bytes(64)))),
        ("a signature cut short", 2, [log], note(by(SIGNER.name, own_id + signature[:-1]))),
        ("a signature too long", 2, [log], note(by(SIGNER.name, own_id + signature + b"\0"))),
        ("one of two trusted signatures is false", 2, [log, witness], note(own, _line(WITNESS, "x\n"))),
    ]  # fmt: skip
    found: list[Vector] = []
    for desc, error, keys, data in rows:
        whole = data if isinstance(data, bytes) else data.encode()
        said = whole.rpartition(b"\n\n")[0] + b"\n"
        found.append({"desc": desc, "want_error": error, "keys": keys, "note": text(whole)})
        found[-1]["text"] = None if error else text(said)
    return found


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
    only = leaf_hash(b"x")
    add("good, the last of two", None, leaf, 1, 2, [only], merkle.node_hash(only, leaf))
    add("index = size = 1 with the only entry's proof", 1, only, 1, 1, [], only)
    add("the only entry with a proof", 1, only, 0, 1, [bytes(32)], only)
    add("a leaf hash of 31 bytes", 1, leaf[:31], 5, 13, proof, root)
    add("no proof", 1, leaf, 5, 13, [], root)
    add("the last but one hash of the proof left out", 1, leaf, 5, 13, [*proof[:-2], proof[-1]], root)
    add("the proof backwards", 2, leaf, 5, 13, proof[::-1], root)
    add("the root of the tree as leaf, index 0", 1, root, 0, 13, [], root)
    add("a second entry of the same tree", 2, leaf_hash(entries[6]), 5, 13, proof, root)
    add("an entry passed off as its leaf hash", 2, sha256(entries[5]).digest(), 5, 13, proof, root)
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
    add("good, 0 to 0", None, 0, 0, [], roots[0], roots[0])
    add("good, 1 to 2", None, 1, 2, merkle.prove_consistency(1, 2, read), roots[1], roots[2])
    add("the size of no tree, with roots that would pass", 1, -1, 1, [roots[1]], roots[1], roots[1])
    add("the first root of 31 bytes", 1, 6, 13, proof, roots[6][:31], roots[13])
    add("the second root of 33 bytes", 1, 6, 13, proof, roots[6], roots[13] + b"\0")
    add("two hashes swapped", 2, 6, 13, [proof[1], proof[0], *proof[2:]], roots[6], roots[13])
    add("the last hash changed", 3, 6, 13, [*proof[:-1], bytes(32)], roots[6], roots[13])
    add("a power of two, and its root in the proof", 1, 8, 9, [roots[8], *merkle.prove_consistency(8, 9, read)], roots[8], roots[9])  # fmt: skip
    add("a shrunk log passed off as grown", 1, 13, 12, merkle.prove_consistency(12, 13, read), roots[13], roots[12])  # fmt: skip
    return found


def render() -> dict[str, str]:
    """File name to content."""
    setting = {"now": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"), "policy": policy().to_bytes().decode()}
    made: dict[str, Any] = {
        "policy.json": setting,
        "anchor.json": anchors(),
        "receipt.json": receipts(),
        "note.json": notes(),
        "inclusion.json": inclusions(),
        "consistency.json": consistencies(),
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for name, content in render().items():
        (FOLDER / name).write_text(content)
