"""Writes the attack vectors of witnesses beside it: what must be accepted and refused, for any implementation.

Everything is fixed but ML-DSA-44, which signs at random: its signatures are kept in lattice.txt, and made anew if that
file is not there. Bytes are base64. `want_error` is null or the number of the check that must fail.

    cosignature.json  1 the note's form, 2 signatures; a good one says who cosigned and when
    witness.json      a request to a witness that accepted `before`; `want_status`, and `want_size` with 409
    answer.json       a witness's answer to a checkpoint: 1 not cosignature lines by its keys alone, valid and timed
    proof.json        the checks of a proof file: 1 form, 2 log, 3 witnesses, 4 inclusion
    trust.json        a trust policy and a checkpoint: 1 the policy's form, 2 log, 3 quorum
    policies.json     a policy file: 1 its form
    receipt.json      a receipt under a policy with witnesses: 8 too few of them, or a false cosignature
"""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from fieldprint.note import (
    COSIGNATURE_MLDSA44,
    MAX_TIMESTAMP,
    Cosigner,
    NoteSigner,
    VerifierKey,
    sign_note,
    signature_line,
)
from fieldprint.tlog import Checkpoint, LogProof, TrustPolicy, merkle
from fieldprint.tlog.trust import Group, KnownLog, KnownWitness
from fieldprint.tlog.witness import AddCheckpoint
from tests.vectors.make_vectors import SIGNER as RECEIPT_LOG
from tests.vectors.make_vectors import Vector, policy, story, text
from tests.witnessing import (
    EAST,
    LOG,
    NORTH,
    ORIGIN,
    SOUTH,
    TIME,
    consistency,
    entries,
    hash_reader,
    head,
    signed,
)

FOLDER = Path(__file__).parent
SIZE = 13
HEAD = head(SIZE)
BODY = HEAD.to_text()
FORK = b" forked"
LATTICE_KEY = MLDSA44PrivateKey.from_seed_bytes(bytes([14]) * 32)
LATTICE = VerifierKey(
    "witness.example/lattice", LATTICE_KEY.public_key().public_bytes_raw(), COSIGNATURE_MLDSA44
)
NORTH_KEY = Ed25519PrivateKey.from_private_bytes(bytes([11]) * 32)
DASH = "\N{EM DASH}"


def lattice() -> dict[str, bytes]:
    """Signatures by the ML-DSA-44 key, by what they sign."""
    path = FOLDER / "lattice.txt"
    if not path.exists():
        message = COSIGNATURE_MLDSA44.message
        messages = {
            "good": message(LATTICE.name, TIME, BODY.encode()),
            "no-time": message(LATTICE.name, 0, BODY.encode()),
            "too-late": message(LATTICE.name, MAX_TIMESTAMP + 1, BODY.encode()),
            "another-name": message("witness.example/other", TIME, BODY.encode()),
            "another-origin": message(LATTICE.name, TIME, BODY.replace(ORIGIN, ORIGIN + "2").encode()),
            "another-size": message(LATTICE.name, TIME, BODY.replace("\n13\n", "\n12\n").encode()),
            "as-ed25519-does": b"cosignature/v1\ntime %d\n" % TIME + BODY.encode(),
            "plain": BODY.encode(),
        }
        rows = [f"{name} {text(LATTICE_KEY.sign(data))}\n" for name, data in messages.items()]
        path.write_text("".join(rows))
    return {name: base64.b64decode(data) for name, data in map(str.split, path.read_text().splitlines())}


def line(key: VerifierKey, timestamp: int, signature: bytes, name: str | None = None) -> str:
    return signature_line(name or key.name, key.key_id + timestamp.to_bytes(8, "big") + signature)


def cosigned(cosigner: Cosigner, body: str = BODY, time: int = TIME) -> str:
    return signature_line(cosigner.name, cosigner.cosign(body.encode(), time))


def note(*lines: str, body: str = BODY, signer: NoteSigner = LOG) -> bytes:
    return sign_note(body, [signer]) + "".join(lines).encode()


def cosignatures() -> list[Vector]:
    north, south, log = NORTH.verifier_key, SOUTH.verifier_key, LOG.verifier_key
    good, by_lattice = cosigned(NORTH), lattice()
    raw = NORTH.cosign(BODY.encode(), TIME)[12:]
    late = NORTH_KEY.sign(b"cosignature/v1\ntime %d\n" % (MAX_TIMESTAMP + 1) + BODY.encode())
    padded = NORTH_KEY.sign(b"cosignature/v1\ntime 0%d\n" % TIME + BODY.encode())
    headless = NORTH_KEY.sign(b"time %d\n" % TIME + BODY.encode())
    second = NORTH_KEY.sign(b"cosignature/v2\ntime %d\n" % TIME + BODY.encode())
    trimmed = NORTH_KEY.sign(b"cosignature/v1\ntime %d\n" % TIME + BODY.encode()[:-1])
    extended = head(SIZE, extensions=("more",)).to_text()
    many = [Cosigner(f"w{i}", EAST._private_key) for i in range(98)]
    flipped = bytearray(by_lattice["good"])
    flipped[1000] ^= 1
    who = {north: TIME}
    rows: list[tuple[str, int | None, list[VerifierKey], bytes, dict[VerifierKey, int]]] = [
        ("good, by one witness", None, [log, north], note(good), who),
        ("good, the witness alone is trusted", None, [north], note(good), who),
        ("good, nobody known cosigned", None, [log, south], note(good), {}),
        ("good, by two witnesses", None, [log, north, south], note(cosigned(SOUTH, time=5), good), {south: 5, north: TIME}),
        ("good, with an extension line", None, [north], note(cosigned(NORTH, extended), body=extended), who),
        ("good, at time 0", None, [north], note(cosigned(NORTH, time=0)), {north: 0}),
        ("good, at the last time", None, [north], note(cosigned(NORTH, time=MAX_TIMESTAMP)), {north: MAX_TIMESTAMP}),
        ("good, a text that is no checkpoint", None, [north], note(cosigned(NORTH, "text\n"), body="text\n"), who),
        ("good, a false cosignature by an unknown witness", None, [log, north], note(cosigned(SOUTH, "x\n"), good), who),
        ("good, a type that nobody knows is ignored", None, [log, north], note(signature_line("w", bytes(80)), good), who),
        ("good, by ML-DSA-44", None, [log, LATTICE], note(line(LATTICE, TIME, by_lattice["good"])), {LATTICE: TIME}),
        ("good, by ML-DSA-44 without a time", None, [LATTICE], note(line(LATTICE, 0, by_lattice["no-time"])), {LATTICE: 0}),
        ("good, both types", None, [north, LATTICE], note(line(LATTICE, TIME, by_lattice["good"]), good), {LATTICE: TIME, north: TIME}),
        ("good, ML-DSA-44 does not cover extension lines", None, [LATTICE], note(line(LATTICE, TIME, by_lattice["good"]), body=extended), {LATTICE: TIME}),
        ("good, among 100 lines", None, [north], note(*(cosigned(w) for w in many), good), who),
        ("101 lines", 1, [north], note(*(cosigned(w) for w in many), good, cosigned(SOUTH)), {}),
        ("a cosignature line twice", 1, [log, north], note(good, good), {}),
        ("an unknown witness's line twice", 1, [log], note(good, good), {}),
        ("two cosignatures by one key at two times", 1, [log, north], note(good, cosigned(NORTH, time=TIME + 1)), {}),
        ("the cosignature without the log's signature and without the empty line", 1, [north], (BODY + good).encode(), {}),
        ("an empty line between the signatures moves the first into the text", 2, [north], note("\n" + good), {}),
        ("a cosignature cut off", 1, [log], note(good[:-1]), {}),
        ("spaces around the cosignature", 1, [log], note(good.replace(" ", "  ")), {}),
        ("a tab behind the name", 1, [log], note(good.replace("north ", "north\t")), {}),
        ("a name with a plus sign", 1, [log], note(good.replace("example/", "example+")), {}),
        ("base64 without its padding", 1, [log], note(good.replace("=", "")), {}),
        ("another time", 2, [log, north], note(line(north, TIME + 1, raw)), {}),
        ("a time of 2^63, signed", 2, [north], note(line(north, MAX_TIMESTAMP + 1, late)), {}),
        ("a time with a leading zero in what is signed", 2, [north], note(line(north, TIME, padded)), {}),
        ("signed without the header line", 2, [north], note(line(north, TIME, headless)), {}),
        ("signed under the header cosignature/v2", 2, [north], note(line(north, TIME, second)), {}),
        ("signed without the last newline", 2, [north], note(line(north, TIME, trimmed)), {}),
        ("a plain signature under the cosignature's key id", 2, [north], note(line(north, TIME, NORTH_KEY.sign(BODY.encode()))), {}),
        ("a plain signature without a time", 2, [north], note(signature_line(NORTH.name, north.key_id + NORTH_KEY.sign(BODY.encode()))), {}),
        ("of another checkpoint", 2, [log, north], note(cosigned(NORTH, head(12).to_text())), {}),
        ("of a forked checkpoint of the same size", 2, [log, north], note(cosigned(NORTH, head(SIZE, FORK).to_text())), {}),
        ("an extension line added", 2, [north], note(good, body=extended), {}),
        ("by another witness under the name and key id", 2, [north], note(line(north, TIME, SOUTH.cosign(BODY.encode(), TIME)[12:])), {}),
        ("a byte short", 2, [north], note(line(north, TIME, raw[:-1])), {}),
        ("a byte too long", 2, [north], note(line(north, TIME, raw + b"\0")), {}),
        ("the time alone", 2, [north], note(line(north, TIME, b"")), {}),
        ("zeros", 2, [north], note(line(north, TIME, bytes(64))), {}),
        ("one of two is false", 2, [north, south], note(cosigned(SOUTH, "x\n"), good), {}),
        ("the log's signature is false", 2, [log, north], note(good).replace(note()[len(BODY) + 1 :], cosigned_log().encode()), {}),
        ("ML-DSA-44, a flipped bit", 2, [LATTICE], note(line(LATTICE, TIME, bytes(flipped))), {}),
        ("ML-DSA-44, a byte short", 2, [LATTICE], note(line(LATTICE, TIME, by_lattice["good"][:-1])), {}),
        ("ML-DSA-44, another time", 2, [LATTICE], note(line(LATTICE, TIME - 1, by_lattice["good"])), {}),
        ("ML-DSA-44, a time of 2^63, signed", 2, [LATTICE], note(line(LATTICE, MAX_TIMESTAMP + 1, by_lattice["too-late"])), {}),
        ("ML-DSA-44, another witness's name signed", 2, [LATTICE], note(line(LATTICE, TIME, by_lattice["another-name"])), {}),
        ("ML-DSA-44, another origin signed", 2, [LATTICE], note(line(LATTICE, TIME, by_lattice["another-origin"])), {}),
        ("ML-DSA-44, another size signed", 2, [LATTICE], note(line(LATTICE, TIME, by_lattice["another-size"])), {}),
        ("ML-DSA-44 over what Ed25519 signs", 2, [LATTICE], note(line(LATTICE, TIME, by_lattice["as-ed25519-does"])), {}),
        ("ML-DSA-44 over the plain text", 2, [LATTICE], note(line(LATTICE, TIME, by_lattice["plain"])), {}),
        ("ML-DSA-44 on a text that is no checkpoint", 2, [LATTICE], note(line(LATTICE, TIME, by_lattice["good"]), body="text\n"), {}),
    ]  # fmt: skip
    return [
        {
            "desc": desc,
            "want_error": error,
            "keys": [str(key) for key in keys],
            "note": text(data),
            "cosigned": None if error else [[str(key), time] for key, time in found.items()],
        }
        for desc, error, keys, data, found in rows
    ]


def cosigned_log() -> str:
    """A signature line of the log over another text."""
    return signature_line(LOG.name, LOG.sign(b"another text\n"))


def witnesses() -> list[Vector]:
    """Requests to a witness that knows the log, after those in `before` were accepted."""
    stranger = NoteSigner(ORIGIN, SOUTH._private_key)
    elsewhere = NoteSigner("fieldprint.example/other", LOG._private_key)
    five, eight = signed(head(5)), signed(head(8))
    first = AddCheckpoint(0, (), five).to_bytes()
    proof = tuple(consistency(5, 8))
    good = AddCheckpoint(5, proof, eight).to_bytes()
    other_body = Checkpoint("fieldprint.example/other", 5, head(5).root_hash).to_text()
    zero = text(bytes(32)).encode()

    def ask(old: int, checkpoint: bytes, *hashes: bytes) -> bytes:
        return AddCheckpoint(old, hashes, checkpoint).to_bytes()

    def changed(old: bytes, new: bytes) -> bytes:
        assert old in good, old
        return good.replace(old, new, 1)

    rows: list[tuple[str, int, list[bytes], bytes, int | None]] = [
        ("good, the first", 200, [], first, None),
        ("good, an empty tree", 200, [], ask(0, signed(head(0))), None),
        ("good, from the empty tree on", 200, [ask(0, signed(head(0)))], first, None),
        ("good, the next", 200, [first], good, None),
        ("good, the same again", 200, [first], ask(5, five), None),
        ("good, cosigned by a stranger too", 200, [first], ask(5, signed(head(8), SOUTH), *proof), None),
        ("good, with an extension line", 200, [first], ask(5, signed(head(8, extensions=("x",))), *proof), None),
        ("nothing", 400, [], b"", None),
        ("no checkpoint", 400, [], b"old 0\n\n", None),
        ("no old size line", 400, [], first.removeprefix(b"old 0\n"), None),
        ("no empty line", 400, [], first.replace(b"\n\n", b"\n"), None),
        ("an old size with a leading zero", 400, [first], changed(b"old 5", b"old 05"), None),
        ("an old size with a sign", 400, [first], changed(b"old 5", b"old +5"), None),
        ("an old size in other digits", 400, [first], changed(b"old 5", "old \u0665".encode()), None),
        ("an old size of 2^63", 400, [first], changed(b"old 5", b"old 9223372036854775808"), None),
        ("a space behind the old size", 400, [first], changed(b"old 5", b"old 5 "), None),
        ("lines that end in CR LF", 400, [first], good.replace(b"\n", b"\r\n"), None),
        ("OLD", 400, [first], changed(b"old", b"OLD"), None),
        ("two old size lines", 400, [first], b"old 5\n" + good, None),
        ("a hash of 31 bytes", 400, [first], changed(b"old 5\n", b"old 5\n" + text(bytes(31)).encode() + b"\n"), None),
        ("a hash in another spelling of base64", 400, [first], changed(b"old 5\n", b"old 5\n" + zero[:-2] + b"B=\n"), None),
        ("a hash that is not base64", 400, [first], changed(b"old 5\n", b"old 5\n!\n"), None),
        ("64 hashes", 400, [first], changed(b"old 5\n", b"old 5\n" + (zero + b"\n") * 61), None),
        ("an old size above the checkpoint's", 400, [first], ask(6, five), None),
        ("a tree size with a leading zero", 400, [first], changed(b"\n8\n", b"\n08\n"), None),
        ("a root of 31 bytes, signed", 400, [], ask(0, sign_note(f"{ORIGIN}\n5\n{text(bytes(31))}\n", [LOG])), None),
        ("no signature lines", 400, [], ask(0, head(5).to_text().encode() + b"\n"), None),
        ("the log's signature line twice", 400, [], ask(0, five + five.splitlines(keepends=True)[-1]), None),
        ("a second, false signature by the log", 403, [], ask(0, five + cosigned_log().encode()), None),
        ("a line behind the end", 400, [], first + b"x\n", None),
        ("signed by a stranger under the log's name", 403, [], ask(0, signed(head(5), signer=stranger)), None),
        ("signed by another log alone", 403, [], ask(0, sign_note(head(5).to_text(), [elsewhere])), None),
        ("cosigned and not signed", 403, [], ask(0, head(5).to_text().encode() + b"\n" + cosigned(NORTH, head(5).to_text()).encode()), None),
        ("the log's signature of another text", 403, [], ask(0, (head(5).to_text() + "\n" + cosigned_log()).encode()), None),
        ("the size changed under the signature", 403, [], first.replace(b"\n5\n", b"\n6\n"), None),
        ("an unknown log", 404, [], ask(0, sign_note(other_body, [elsewhere])), None),
        ("an unknown log, signed by a known one", 404, [], ask(0, sign_note(other_body, [LOG])), None),
        ("an old size where nothing was cosigned", 409, [], good, 0),
        ("the old size 0 once a tree was cosigned", 409, [first], ask(0, eight), 5),
        ("an old size in between", 409, [first], ask(6, eight, *consistency(6, 8)), 5),
        ("an older tree again", 409, [first, good], ask(5, five), 8),
        ("a second history from the start", 409, [first], ask(0, signed(head(8, FORK))), 5),
        ("a smaller tree of a second history", 409, [first], ask(3, signed(head(3, FORK))), 5),
        ("an empty tree with another root", 422, [], ask(0, signed(Checkpoint(ORIGIN, 0, bytes(32)))), None),
        ("a proof from the empty tree", 422, [], ask(0, five, bytes(32)), None),
        ("a fork", 422, [first], ask(5, signed(head(8, FORK)), *consistency(5, 8, FORK)), None),
        ("a fork of the same size", 422, [first], ask(5, signed(head(5, FORK))), None),
        ("a fork with the true log's proof", 422, [first], ask(5, signed(head(8, FORK)), *proof), None),
        ("no proof", 422, [first], ask(5, eight), None),
        ("a proof cut short", 422, [first], ask(5, eight, *proof[:-1]), None),
        ("a proof too long", 422, [first], ask(5, eight, *proof, bytes(32)), None),
        ("a proof backwards", 422, [first], ask(5, eight, *proof[::-1]), None),
        ("a proof of another old size", 422, [first], ask(5, eight, *consistency(4, 8)), None),
        ("a proof between equal sizes", 422, [first], ask(5, five, bytes(32)), None),
    ]  # fmt: skip
    return [
        {
            "desc": desc,
            "want_status": status,
            "want_size": size,
            "logs": [str(LOG.verifier_key)],
            "before": [text(body) for body in before],
            "request": text(body),
        }
        for desc, status, before, body, size in rows
    ]


def answers() -> list[Vector]:
    north, south, east = cosigned(NORTH), cosigned(SOUTH), cosigned(EAST)
    over_all = cosigned(NORTH, f"{BODY}\n{north}")
    longer = cosigned(NORTH, BODY + "\nx\n")
    rows: list[tuple[str, int | None, str]] = [
        ("good", None, north),
        ("good, another time", None, cosigned(NORTH, time=7)),
        ("good, among strangers' lines", None, south + north + east),
        ("nothing", 1, ""),
        ("no signature line", 1, "OK\n"),
        ("a stranger's line alone", 1, south),
        ("of another checkpoint", 1, cosigned(NORTH, head(12).to_text())),
        ("no time", 1, cosigned(NORTH, time=0)),
        ("a line twice", 1, north * 2),
        ("two times", 1, north + cosigned(NORTH, time=7)),
        ("cut off", 1, north[:-1]),
        ("more text in front, and signed", 1, "x\n\n" + longer),
        ("more text in front, not signed", 1, "x\n\n" + north),
        ("an empty line in front", 1, "\n" + north),
        ("a line, more text, and a signature over all", 1, f"{north}\n{over_all}"),
        ("the whole note", 1, note(north).decode()),
    ]  # fmt: skip
    return [
        {
            "desc": desc,
            "want_error": error,
            "checkpoint": text(note()),
            "keys": [str(NORTH.verifier_key)],
            "answer": text(answer.encode()),
        }
        for desc, error, answer in rows
    ]


def trust_policy(threshold: int = 2) -> TrustPolicy:
    known = (("north", NORTH.verifier_key), ("south", SOUTH.verifier_key), ("lattice", LATTICE))
    return TrustPolicy(
        (KnownLog(LOG.verifier_key),),
        tuple(KnownWitness(name, key) for name, key in known),
        (Group("enough", threshold, ("north", "south", "lattice")),),
        "enough",
    )


def proofs() -> list[Vector]:
    index = 6
    entry = entries(SIZE)[index]
    hashes = tuple(merkle.prove_inclusion(index, SIZE, hash_reader(SIZE)))
    by_both = note(cosigned(NORTH), cosigned(SOUTH))
    good = LogProof(index, hashes, by_both)
    file = good.to_bytes()
    other = NoteSigner("fieldprint.example/other", LOG._private_key)
    impostor = NoteSigner(ORIGIN, EAST._private_key)
    twelve = head(12).to_text()
    by_lattice = line(LATTICE, TIME, lattice()["good"])

    def with_note(data: bytes) -> bytes:
        return replace(good, checkpoint=data).to_bytes()

    def changed(old: bytes, new: bytes) -> bytes:
        assert old in file, old
        return file.replace(old, new, 1)

    rows: list[tuple[str, int | None, bytes, bytes | None]] = [
        ("good", None, file, entry),
        ("good, the entry in the extra data", None, replace(good, extra=entry).to_bytes(), None),
        ("good, other extra data beside the entry", None, replace(good, extra=b"x").to_bytes(), entry),
        ("good, by a witness with ML-DSA-44", None, with_note(note(by_lattice, cosigned(SOUTH))), entry),
        ("good, three witnesses", None, with_note(note(by_lattice, cosigned(SOUTH), cosigned(NORTH))), entry),
        ("good, a stranger's false cosignature", None, with_note(note(cosigned(EAST, "x\n"), cosigned(SOUTH), cosigned(NORTH))), entry),
        ("empty file", 1, b"", entry),
        ("another version", 1, changed(b"@v1", b"@v2"), entry),
        ("a space in front", 1, b" " + file, entry),
        ("a byte order mark in front", 1, b"\xef\xbb\xbf" + file, entry),
        ("lines that end in CR LF", 1, file.replace(b"\n", b"\r\n"), entry),
        ("no index", 1, changed(b"index 6\n", b""), entry),
        ("an index with a leading zero", 1, changed(b"index 6", b"index 06"), entry),
        ("a negative index", 1, changed(b"index 6", b"index -6"), entry),
        ("an index of 2^63", 1, changed(b"index 6", b"index 9223372036854775808"), entry),
        ("two indices", 1, changed(b"index 6\n", b"index 6\nindex 6\n"), entry),
        ("extra data behind the index", 1, changed(b"index 6\n", b"index 6\nextra YQ==\n"), entry),
        ("extra data twice", 1, changed(b"index", b"extra YQ==\nextra YQ==\nindex"), entry),
        ("extra data in another spelling of base64", 1, changed(b"index", b"extra YR==\nindex"), entry),
        ("a hash of 31 bytes", 1, replace(good, hashes=(bytes(31), *hashes[1:])).to_bytes(), entry),
        ("64 hashes", 1, replace(good, hashes=(bytes(32),) * 64).to_bytes(), entry),
        ("no empty line", 1, file.replace(b"\n\n", b"\n"), entry),
        ("two empty lines", 1, file.replace(b"\n\n", b"\n\n\n", 1), entry),
        ("a tree size with a leading zero", 1, changed(b"\n13\n", b"\n013\n"), entry),
        ("no signatures", 1, with_note(BODY.encode() + b"\n"), entry),
        ("a signature line twice", 1, with_note(by_both + cosigned(NORTH).encode()), entry),
        ("cut off", 1, file[:-1], entry),
        ("a byte behind the end", 1, file + b"\n", entry),
        ("no entry", 1, file, None),
        ("signed by another log", 2, with_note(note(cosigned(NORTH), cosigned(SOUTH), signer=other)), entry),
        ("signed under the log's name by another key", 2, with_note(note(cosigned(NORTH), cosigned(SOUTH), signer=impostor)), entry),
        ("cosigned and not signed", 2, with_note((BODY + "\n" + cosigned(NORTH) + cosigned(SOUTH)).encode()), entry),
        ("another origin, signed by the log's key", 2, with_note(note(body=BODY.replace(ORIGIN, "x.example/log"))), entry),
        ("the size changed", 2, changed(b"\n13\n", b"\n14\n"), entry),
        ("two signatures by the log", 2, with_note(by_both + cosigned_log().encode()), entry),
        ("no witness", 3, with_note(note()), entry),
        ("one witness of two", 3, with_note(note(cosigned(NORTH))), entry),
        ("one witness and a stranger", 3, with_note(note(cosigned(NORTH), cosigned(EAST))), entry),
        ("one witness at two times", 3, with_note(note(cosigned(NORTH), cosigned(NORTH, time=1))), entry),
        ("one witness under two names", 3, with_note(note(cosigned(NORTH), cosigned(Cosigner("south", NORTH_KEY)))), entry),
        ("one witness under the other's name", 3, with_note(note(cosigned(NORTH), cosigned(Cosigner(SOUTH.name, NORTH_KEY)))), entry),
        ("one cosignature of an older tree", 3, with_note(note(cosigned(NORTH), cosigned(SOUTH, twelve))), entry),
        ("two good cosignatures and a false one by a third", 3, with_note(note(cosigned(NORTH), cosigned(SOUTH), line(LATTICE, TIME, lattice()["another-size"]))), entry),
        ("another entry", 4, file, entries(SIZE)[5]),
        ("an empty entry", 4, file, b""),
        ("another entry in the extra data", 4, replace(good, extra=b"another").to_bytes(), None),
        ("the entry's leaf hash as the entry", 4, file, merkle.leaf_hash(entry)),
        ("another index", 4, replace(good, index=7).to_bytes(), entry),
        ("an index beyond the tree", 4, replace(good, index=SIZE).to_bytes(), entry),
        ("a hash left out", 4, replace(good, hashes=hashes[:-1]).to_bytes(), entry),
        ("a hash more", 4, replace(good, hashes=(*hashes, bytes(32))).to_bytes(), entry),
        ("the hashes backwards", 4, replace(good, hashes=hashes[::-1]).to_bytes(), entry),
        ("no hashes", 4, replace(good, hashes=()).to_bytes(), entry),
        ("a smaller tree, cosigned", 4, with_note(note(cosigned(NORTH, twelve), cosigned(SOUTH, twelve), body=twelve)), entry),
    ]  # fmt: skip
    policy_text = trust_policy().to_bytes().decode()
    return [
        {
            "desc": desc,
            "want_error": error,
            "policy": policy_text,
            "proof": text(data),
            "entry": None if item is None else text(item),
        }
        for desc, error, data, item in rows
    ]


def trusts() -> list[Vector]:
    log, north, south = (str(key) for key in (LOG.verifier_key, NORTH.verifier_key, SOUTH.verifier_key))
    good = f"log {log}\nwitness n {north}\nwitness s {south}\ngroup g all n s\nquorum g\n"
    both, one = note(cosigned(NORTH), cosigned(SOUTH)), note(cosigned(NORTH))
    plain = str(VerifierKey(NORTH.name, NORTH.verifier_key.public_bytes))
    stamped = str(replace(LOG.verifier_key, signature_type=NORTH.verifier_key.signature_type))

    def changed(old: str, new: str) -> str:
        assert old in good, old
        return good.replace(old, new)

    rows: list[tuple[str, int | None, str | bytes, bytes]] = [
        ("good, all", None, good, both),
        ("good, any", None, changed("all", "any"), one),
        ("good, one of two", None, changed("all", "1"), one),
        ("good, a witness as the quorum", None, changed("quorum g", "quorum n"), one),
        ("good, none", None, changed("quorum g", "quorum none"), note()),
        ("good, none and no witnesses", None, f"log {log}\nquorum none\n", one),
        ("good, groups of groups", None, changed("all n s", "any n\ngroup h any s\ngroup both 2 g h").replace("quorum g", "quorum both"), both),
        ("good, comments, tabs, empty lines, URLs", None, " # x\n\n\t" + good.replace(" ", " \t ").replace("\n", "\t\n").replace(log, log + " https://log.example"), both),
        ("good, names and comments in any octets", None, good.replace("witness n", "witness \u00e9").replace("all n", "all \u00e9").encode() + b"# \xff\n", both),
        ("good, two logs of which one signed", None, f"log {VerifierKey('other', EAST.verifier_key.public_bytes)}\n" + good, both),
        ("good, definitions behind the quorum line", None, f"witness n {north}\nquorum n\nlog {log}\n", one),
        ("empty", 1, "", both),
        ("no quorum", 1, changed("quorum g\n", ""), both),
        ("two quorums", 1, good + "quorum g\n", both),
        ("no newline at the end", 1, good[:-1], both),
        ("lines that end in CR LF", 1, good.replace("\n", "\r\n"), both),
        ("a NUL in a comment", 1, good + "# \0\n", both),
        ("a no-break space between items", 1, changed("quorum g", "quorum\u00a0g"), both),
        ("an unknown word", 1, good + "threshold 2\n", both),
        ("a word in capitals", 1, changed("quorum", "Quorum"), both),
        ("three items on a quorum line", 1, changed("quorum g", "quorum g n"), both),
        ("a witness without a name", 1, good + f"witness {log}\n", both),
        ("a group without members", 1, changed("all n s", "all"), both),
        ("a group of a name not yet defined", 1, changed("all n s", "all n x"), both),
        ("a group that is its own member", 1, changed("all n s", "all n g"), both),
        ("a group with none for a member", 1, changed("all n s", "any none n"), both),
        ("a member twice in a group", 1, changed("all n s", "2 n n"), both),
        ("a member of two groups", 1, good + "group h any n\n", both),
        ("a threshold of 0", 1, changed("all", "0"), both),
        ("a threshold above the members", 1, changed("all", "3"), both),
        ("a threshold with a leading zero", 1, changed("all", "02"), both),
        ("a threshold in other digits", 1, changed("all", "\u0662"), both),
        ("a quorum not yet defined", 1, "quorum g\n" + changed("quorum g\n", ""), both),
        ("a quorum of a log's name", 1, changed("quorum g", f"quorum {ORIGIN}"), both),
        ("a name defined twice", 1, changed("witness s", "witness n"), both),
        ("a witness named none", 1, changed("witness s", "witness none"), both),
        ("one key under two names", 1, good + f"witness x {north}\n", both),
        ("one log twice", 1, f"log {log}\n" + good, both),
        ("a log's key as a witness", 1, good + f"witness x {stamped}\n", both),
        ("a witness's key for a log", 1, f"log {south}\n" + good, both),
        ("a log's type of key for a witness", 1, changed(north, plain), both),
        ("a key whose hash is not its own", 1, changed(north, north.replace("+", "+0", 1)), both),
        ("no log", 2, changed(f"log {log}\n", ""), both),
        ("another log", 2, changed(log, str(VerifierKey("other", EAST.verifier_key.public_bytes))), both),
        ("the log's key under another name", 2, changed(log, str(VerifierKey("other", LOG.verifier_key.public_bytes))), both),
        ("one of all", 3, good, one),
        ("none of any", 3, changed("all", "any"), note(cosigned(EAST))),
        ("the other witness", 3, changed("quorum g", "quorum s"), one),
        ("one group of two", 3, changed("all n s", "any n\ngroup h any s\ngroup both 2 g h").replace("quorum g", "quorum both"), one),
        ("a false cosignature though none is needed", 3, changed("quorum g", "quorum none"), note(cosigned(NORTH, "x\n"))),
    ]  # fmt: skip
    return [
        {
            "desc": desc,
            "want_error": error,
            "policy": text(data if isinstance(data, bytes) else data.encode()),
            "checkpoint": text(checkpoint),
        }
        for desc, error, data, checkpoint in rows
    ]


def policies() -> list[Vector]:
    north, south = str(NORTH.verifier_key), str(SOUTH.verifier_key)
    plain = policy()
    good = replace(plain, witnesses=(north, south), minimum_witnesses=2).to_bytes().decode()
    own = str(replace(RECEIPT_LOG.verifier_key, signature_type=NORTH.verifier_key.signature_type))

    def changed(old: str, new: str) -> str:
        assert old in good, old
        return good.replace(old, new)

    rows: list[tuple[str, int | None, str]] = [
        ("good, with witnesses", None, good),
        ("good, without the table", None, plain.to_bytes().decode()),
        ("good, a minimum of 0", None, changed("minimum = 2", "minimum = 0")),
        ("good, two keys of one name", None, changed(south, str(replace(LATTICE, name=NORTH.name))).replace("minimum = 2", "minimum = 1")),
        ("a minimum above the witnesses", 1, changed("minimum = 2", "minimum = 3")),
        ("a negative minimum", 1, changed("minimum = 2", "minimum = -1")),
        ("true for a minimum", 1, changed("minimum = 2", "minimum = true")),
        ("a minimum in a text", 1, changed("minimum = 2", 'minimum = "2"')),
        ("no minimum", 1, changed("minimum = 2\n", "")),
        ("no keys", 1, changed(f'keys = ["{north}", "{south}"]\n', "")),
        ("an unknown field", 1, good + "more = 1\n"),
        ("keys in a table", 1, changed(f'["{north}", "{south}"]', f'{{n = "{north}"}}')),
        ("a number for a key", 1, changed(f'"{south}"', "5")),
        ("one key twice", 1, changed(south, north)),
        ("one key under two names", 1, changed(south, str(replace(NORTH.verifier_key, name="other")))),
        ("two keys of one name for a minimum of 2", 1, changed(south, str(replace(LATTICE, name=NORTH.name)))),
        ("the log's key as a witness", 1, changed(south, own)),
        ("a log's type of key", 1, changed(south, str(VerifierKey("w", SOUTH.verifier_key.public_bytes)))),
        ("a key whose hash is not its own", 1, changed(south, south.replace("+", "+0", 1))),
        ("the witnesses in place of the table", 1, changed("[witnesses]", "[witness]")),
    ]  # fmt: skip
    return [{"desc": desc, "want_error": error, "policy": data} for desc, error, data in rows]


def receipts() -> list[Vector]:
    _, plain = story()
    body = plain.checkpoint.split("\n\n")[0] + "\n"

    def with_lines(*lines: str) -> bytes:
        return replace(plain, checkpoint=plain.checkpoint + "".join(lines)).to_bytes()

    north, south, east = (cosigned(cosigner, body) for cosigner in (NORTH, SOUTH, EAST))
    rows: list[tuple[str, int | None, bytes]] = [
        ("good, both witnesses", None, with_lines(north, south)),
        ("good, in another order, with a stranger", None, with_lines(east, south, north)),
        ("no witness", 8, plain.to_bytes()),
        ("one witness of two", 8, with_lines(north)),
        ("one witness and a stranger", 8, with_lines(north, east)),
        ("one witness at two times", 8, with_lines(north, cosigned(NORTH, body, 1))),
        (
            "one witness under both names",
            8,
            with_lines(north, cosigned(Cosigner(SOUTH.name, NORTH_KEY), body)),
        ),
        ("a cosignature of another checkpoint", 8, with_lines(north, cosigned(SOUTH))),
        ("a cosignature of zeros", 8, with_lines(north, line(SOUTH.verifier_key, TIME, bytes(64)))),
        ("a line twice", 2, with_lines(north, south, south)),
    ]
    told = replace(
        policy(), witnesses=(str(NORTH.verifier_key), str(SOUTH.verifier_key)), minimum_witnesses=2
    )
    return [
        {"desc": desc, "want_error": error, "policy": told.to_bytes().decode(), "receipt": text(data)}
        for desc, error, data in rows
    ]


def render() -> dict[str, str]:
    """File name to content."""
    made: dict[str, Any] = {
        "cosignature.json": cosignatures(),
        "witness.json": witnesses(),
        "answer.json": answers(),
        "proof.json": proofs(),
        "trust.json": trusts(),
        "policies.json": policies(),
        "receipt.json": receipts(),
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for name, content in render().items():
        (FOLDER / name).write_text(content)
