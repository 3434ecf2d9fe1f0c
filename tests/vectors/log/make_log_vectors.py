"""Writes the attack vectors of the log beside it: what an auditor, a reader over HTTP and a server must accept or refuse.

Everything is fixed, so a run gives the same bytes (tests/test_log_vectors.py holds the files to it). Each file is a list of
objects with `desc` and what must be said; bytes are base64.

    logs.json        name to files of a log, and the key that signs them all; the entries are `entry 0`, `entry 1`, ...
    checkpoint.json  text, want_error: null or 1
    tile.json        kind (tile or bundle), width, data, want_error: null or 1
    subtree.json     start, stop, tree_size, proof, subtree_hash, root_hash, want_error: null or the check
    audit.json       log, changes, since (null, or a log and a position in it), want_error (null or the check), want_place
    entries.json     entries of a log, want: the indexes that an audit with policy.json of the folder above reports
    request.json     request as sent to a server of log `300` with a token, want_status, want_headers, want_body (or null)
    response.json    answers that a reader of `checkpoint` gets one after the other, want: ok, missing, refused

A change is a list: ["remove", file], ["xor", file, position, mask], ["cut", file, bytes to leave], ["append", file, data],
["put", file, data], ["copy", file, from log, from file].
"""

import base64
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import sign_revocation
from fieldprint.commit import AbortEntry, Commitment
from fieldprint.note import NoteSigner, sign_note
from fieldprint.registry import Promotion, revocation_entry
from fieldprint.tlog import Checkpoint, LogWriter, leaf_hash, merkle
from fieldprint.tlog.tile import bundle_path, encode_bundle, tile_path
from tests.vectors.make_vectors import NOW, OWNER, SECOND, STRANGER, Vector, text, tree

FOLDER = Path(__file__).parent
SIGNER = NoteSigner("vectors.example/audit", Ed25519PrivateKey.from_private_bytes(bytes([6]) * 32))
OTHER = NoteSigner("vectors.example/other", Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32))
IMPOSTOR = NoteSigner("vectors.example/audit", Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32))
TOKEN = "a-token-of-the-vectors"
LOGS: dict[str, tuple[NoteSigner, int, int | None]] = {
    "0": (SIGNER, 0, None),
    "3": (SIGNER, 3, None),
    "299": (SIGNER, 299, None),
    "300": (SIGNER, 300, None),
    "300 forked at 7": (SIGNER, 300, 7),
    "600": (SIGNER, 600, None),
    "600 forked at 299": (SIGNER, 600, 299),
    "3 of another log": (OTHER, 3, None),
}


def log_files(signer: NoteSigner, size: int, fork: int | None) -> dict[str, bytes]:
    """The files of a log after one append."""
    entries = [b"forged" if i == fork else b"entry %d" % i for i in range(size)]
    with TemporaryDirectory() as folder:
        with LogWriter(Path(folder) / "log", signer, create=True) as log:
            log.append(entries)
        paths = sorted(
            p for p in (Path(folder) / "log").rglob("*") if p.is_file() and not p.name.startswith(".")
        )
        return {path.relative_to(Path(folder) / "log").as_posix(): path.read_bytes() for path in paths}


FILES = {name: log_files(*what) for name, what in LOGS.items()}


def checkpoints() -> list[Vector]:
    root = text(bytes(range(32)))
    good = f"a.example/log\n7\n{root}\n"
    rows: list[tuple[str, int | None, str]] = [
        ("good", None, good),
        ("good, an empty log", None, f"a.example/log\n0\n{text(merkle.empty_root())}\n"),
        ("good, the largest size", None, f"a.example/log\n{2**63 - 1}\n{root}\n"),
        ("good, two extension lines", None, good + "extension\nanother one\n"),
        ("good, a space in the origin", None, good.replace("a.example/log", "a log")),
        ("a size with a leading zero", 1, good.replace("7", "07", 1)),
        ("a size of two zeros", 1, good.replace("\n7\n", "\n00\n")),
        ("a negative size", 1, good.replace("\n7\n", "\n-7\n")),
        ("minus zero", 1, good.replace("\n7\n", "\n-0\n")),
        ("a plus sign", 1, good.replace("\n7\n", "\n+7\n")),
        ("a size in hexadecimal", 1, good.replace("\n7\n", "\n0x7\n")),
        ("a size with an underscore", 1, good.replace("\n7\n", "\n1_0\n")),
        ("a size with an exponent", 1, good.replace("\n7\n", "\n1e3\n")),
        ("a size in Arabic-Indic digits", 1, good.replace("\n7\n", "\n\u0667\n")),
        ("a size with a space behind it", 1, good.replace("\n7\n", "\n7 \n")),
        ("a size of 2^63", 1, good.replace("\n7\n", f"\n{2**63}\n")),
        ("a size of 2^64 + 7, which wraps to 7", 1, good.replace("\n7\n", f"\n{2**64 + 7}\n")),
        ("no size", 1, f"a.example/log\n{root}\n"),
        ("no root", 1, "a.example/log\n7\n"),
        ("no origin", 1, f"\n7\n{root}\n"),
        ("an empty line in front", 1, "\n" + good),
        ("an empty line behind", 1, good + "\n"),
        ("an empty line in front of an extension", 1, good + "\nextension\n"),
        ("no newline at the end", 1, good[:-1]),
        ("an extension without a newline", 1, good + "extension"),
        ("a carriage return behind the root", 1, good[:-1] + "\r\n"),
        ("a root of 31 bytes", 1, good.replace(root, text(bytes(31)))),
        ("a root of 33 bytes", 1, good.replace(root, text(bytes(33)))),
        ("a root in hexadecimal", 1, good.replace(root, bytes(32).hex())),
        ("a root without padding", 1, good.replace(root, root.rstrip("="))),
        ("a root with spare bits set", 1, good.replace(root, root[:-2] + "9=")),
        ("a root in base64url", 1, good.replace(root, "_" * 43 + "=")),
        ("a root with a space in front", 1, good.replace(root, " " + root)),
        ("two roots on one line", 1, good.replace(root, f"{root} {root}")),
        ("nothing", 1, ""),
    ]
    return [{"desc": desc, "want_error": error, "text": text(data.encode())} for desc, error, data in rows]


def tiles() -> list[Vector]:
    entries = [b"", b"a", b"bc" * 40]
    bundle, hashes = encode_bundle(entries), bytes(range(96))
    large = encode_bundle([bytes(65535)])
    rows: list[tuple[str, int | None, str, int, bytes]] = [
        ("good, three hashes", None, "tile", 3, hashes),
        ("good, 256 hashes", None, "tile", 256, bytes(8192)),
        ("a hash cut short", 1, "tile", 3, hashes[:-1]),
        ("a hash missing", 1, "tile", 3, hashes[:64]),
        ("a byte behind the last hash", 1, "tile", 3, hashes + b"\0"),
        ("a hash too many", 1, "tile", 3, hashes + bytes(32)),
        ("an empty tile", 1, "tile", 1, b""),
        ("255 hashes in the place of a full tile", 1, "tile", 256, bytes(8160)),
        ("257 hashes in the place of a full tile", 1, "tile", 256, bytes(8224)),
        ("good, an empty entry, one byte, 80 bytes", None, "bundle", 3, bundle),
        ("good, the longest entry", None, "bundle", 1, large),
        ("good, 256 empty entries", None, "bundle", 256, bytes(512)),
        ("an entry cut short", 1, "bundle", 3, bundle[:-1]),
        ("a length without its second byte", 1, "bundle", 3, bundle + b"\0"),
        ("a length without an entry", 1, "bundle", 4, bundle + b"\0\1"),
        ("an entry too many", 1, "bundle", 3, bundle + b"\0\0"),
        ("an empty entry too many in front", 1, "bundle", 3, b"\0\0" + bundle),
        ("an entry missing", 1, "bundle", 3, encode_bundle(entries[:2])),
        ("an empty bundle", 1, "bundle", 1, b""),
        ("a length beyond the end", 1, "bundle", 1, b"\xff\xffabc"),
        ("lengths in little-endian", 1, "bundle", 1, b"\3\0abc"),
        ("lengths of four bytes", 1, "bundle", 1, b"\0\0\0\3abc"),
        ("257 empty entries", 1, "bundle", 256, bytes(514)),
    ]
    return [
        {"desc": f"{kind}: {desc}", "want_error": error, "kind": kind, "width": width, "data": text(data)}
        for desc, error, kind, width, data in rows
    ]


def subtrees() -> list[Vector]:
    found: list[Vector] = []
    entries = [b"entry %d" % i for i in range(13)]
    read = tree(entries)
    root = merkle.tree_hash(13, read)

    def add(
        desc: str, error: int | None, start: int, stop: int, proof: list[bytes], part: bytes, whole: bytes = root,
        size: int = 13,
    ) -> None:  # fmt: skip
        bounds = {"start": start, "stop": stop, "tree_size": size}
        hashes = {"subtree_hash": text(part), "root_hash": text(whole), "proof": [text(h) for h in proof]}
        found.append({"desc": desc, "want_error": error, **bounds, **hashes})

    def part(start: int, stop: int) -> bytes:
        return merkle.range_hash(start, stop, read)

    for start, stop in ((0, 13), (0, 6), (4, 8), (8, 13), (8, 11), (12, 13), (5, 6)):
        add(
            f"good, [{start}, {stop})",
            None,
            start,
            stop,
            merkle.prove_subtree(start, stop, 13, read),
            part(start, stop),
        )
    proof, hashed = merkle.prove_subtree(4, 8, 13, read), part(4, 8)
    cut = merkle.prove_subtree(8, 11, 13, read)
    add("an empty range", 1, 4, 4, proof, hashed)
    add("a range backwards", 1, 8, 4, proof, hashed)
    add("a start that is no subtree's", 1, 2, 6, proof, hashed)
    add("a negative start", 1, -4, 0, proof, hashed)
    add("a stop behind the tree", 1, 8, 14, proof, hashed)
    add("an empty tree", 1, 0, 1, [], hashed, size=0)
    add("a proof cut short", 1, 4, 8, proof[:-1], hashed)
    add("a proof too long", 1, 4, 8, [*proof, bytes(32)], hashed)
    add("no proof", 1, 8, 11, [], part(8, 11))
    add("a hash of 31 bytes", 1, 4, 8, [proof[0][:31], *proof[1:]], hashed)
    add("a subtree hash of 33 bytes", 1, 4, 8, proof, hashed + b"\0")
    add("a root of 31 bytes", 1, 4, 8, proof, hashed, root[:31])
    add("another subtree's hash", 3, 4, 8, proof, part(0, 4))
    add("another subtree's hash, of a cut one", 2, 8, 11, cut, part(8, 10))
    add("the neighbour's bounds", 3, 0, 4, proof, hashed)
    add("another root", 3, 4, 8, proof, hashed, merkle.tree_hash(12, read))
    add("two hashes swapped", 3, 4, 8, proof[::-1], hashed)
    add("a changed hash", 3, 4, 8, [bytes(32), *proof[1:]], hashed)
    add("the last hash changed", 3, 8, 11, [*cut[:-1], bytes(32)], part(8, 11))
    add("a leaf passed off as a subtree", 3, 4, 8, proof, leaf_hash(entries[4]))
    add("an entry more than the subtree has", 1, 8, 12, [part(8, 12), *cut[1:]][: len(cut)], part(8, 11))
    return found


def audits() -> list[Vector]:
    found: list[Vector] = []
    t0, t1, above = tile_path(0, 0), tile_path(0, 1, 44), tile_path(1, 0, 1)
    b0, b1 = bundle_path(0), bundle_path(1, 44)

    def add(
        desc: str, error: int | None, place: str | None, log: str, *changes: list[Any], since: list[Any] | None = None
    ) -> None:  # fmt: skip
        row = {"desc": desc, "want_error": error, "want_place": place, "log": log}
        found.append({**row, "changes": list(changes), "since": since})

    for log in ("0", "3", "299", "300", "600"):
        add(f"good, {log} entries", None, None, log)
    for old, new in (
        ("0", "300"),
        ("3", "300"),
        ("299", "300"),
        ("300", "300"),
        ("300", "600"),
        ("3", "600"),
    ):
        add(f"good, {old} entries at the last audit, {new} now", None, None, new, since=[old, int(old)])
    add("good, the last audit was interrupted", None, None, "600", since=["300", 256])
    whole_tile, whole_bundle = (
        ["copy", tile_path(0, 1), "600", tile_path(0, 1)],
        ["copy", bundle_path(1), "600", bundle_path(1)],
    )
    add("good, partial files gone, full ones there", None, None, "300", ["remove", t1], ["remove", b1], whole_tile, whole_bundle)  # fmt: skip
    # Check 1
    add("no checkpoint", 1, "checkpoint", "300", ["remove", "checkpoint"])
    add("an empty checkpoint", 1, "checkpoint", "300", ["put", "checkpoint", ""])
    add("a byte of the checkpoint's root", 1, "checkpoint", "300", ["xor", "checkpoint", 30, 1])
    add("a byte of the checkpoint's signature", 1, "checkpoint", "300", ["xor", "checkpoint", 140, 1])
    size = FILES["300"]["checkpoint"].index(b"\n300\n") + 1
    add("a digit of the checkpoint's size", 1, "checkpoint", "300", ["xor", "checkpoint", size + 2, 1])
    add("a checkpoint without its last newline", 1, "checkpoint", "300", ["cut", "checkpoint", len(FILES["300"]["checkpoint"]) - 1])  # fmt: skip
    add("a byte behind the checkpoint", 1, "checkpoint", "300", ["append", "checkpoint", text(b"\n")])
    head = Checkpoint.from_text(FILES["300"]["checkpoint"].decode().partition("\n\n")[0] + "\n")
    for desc, signed in (
        ("a checkpoint signed by an impostor", sign_note(head.to_text(), [IMPOSTOR])),
        ("a checkpoint of another log, signed by this log's key", sign_note(replace(head, origin="vectors.example/other").to_text(), [SIGNER])),
        ("a checkpoint signed twice", sign_note(head.to_text(), [SIGNER, SIGNER])),
        ("a checkpoint that is text without signatures", head.to_text().encode() + b"\n"),
    ):  # fmt: skip
        add(desc, 1, "checkpoint", "300", ["put", "checkpoint", text(signed)])
    add(
        "another log's checkpoint",
        1,
        "checkpoint",
        "300",
        ["copy", "checkpoint", "3 of another log", "checkpoint"],
    )
    # Check 2
    add("the log shrank by one", 2, "checkpoint", "299", since=["300", 300])
    add("the log was emptied", 2, "checkpoint", "0", since=["3", 3])
    add("another tree of the same size", 2, "checkpoint", "300 forked at 7", since=["300", 300])
    add("a grown log with another past", 2, "checkpoint", "600 forked at 299", since=["300", 300])
    add("a grown log with another past, where the last audit had not got", 2, "checkpoint", "600 forked at 299", since=["300", 256])  # fmt: skip
    add("grown behind the fork of the last audit", 2, "checkpoint", "600", since=["300 forked at 7", 300])
    # Check 3
    for name, file in (("the level 0 tile", t1), ("the tile above", above)):
        add(f"{name} is gone", 3, None, "300", ["remove", file])
        add(f"a byte of {name}", 3, None, "300", ["xor", file, 9, 128])
        add(f"{name} cut by a byte", 3, None, "300", ["cut", file, len(FILES["300"][file]) - 1])
        add(f"a byte behind {name}", 3, None, "300", ["append", file, text(b"\0")])
    add("the full tile in the place of a missing partial one is cut", 3, None, "300", ["remove", t1], whole_tile, ["cut", tile_path(0, 1), 8160])  # fmt: skip
    add("a new checkpoint over old tiles", 3, None, "299", ["copy", "checkpoint", "300", "checkpoint"])
    add("an old checkpoint's partial tile under another name", 3, None, "299", ["copy", "checkpoint", "300", "checkpoint"], ["copy", t1, "299", tile_path(0, 1, 43)])  # fmt: skip
    # Check 4
    add("a full tile is gone", 4, t0, "300", ["remove", t0])
    add("a byte of a full tile", 4, t0, "300", ["xor", t0, 8191, 1])
    add("a full tile cut by a hash", 4, t0, "300", ["cut", t0, 8160])
    add("a hash behind a full tile", 4, t0, "300", ["append", t0, text(bytes(32))])
    add("two full tiles, the second one changed", 4, tile_path(0, 1), "600", ["xor", tile_path(0, 1), 0, 1])
    add("a full tile of a fork", 4, t0, "300", ["copy", t0, "300 forked at 7", t0])
    add("a full tile and its bundle of a fork", 4, t0, "300", ["copy", t0, "300 forked at 7", t0], ["copy", b0, "300 forked at 7", b0])  # fmt: skip
    # Check 5
    add("a bundle is gone", 5, b0, "300", ["remove", b0])
    add("the last bundle is gone", 5, b1, "300", ["remove", b1])
    add("a bundle of a fork", 5, "entry 7", "300", ["copy", b0, "300 forked at 7", b0])
    add("a byte of an entry", 5, "entry 0", "300", ["xor", b0, 4, 1])
    add("a byte of the last entry", 5, "entry 299", "300", ["xor", b1, len(FILES["300"][b1]) - 1, 1])
    add("a length of a bundle", 5, b0, "300", ["xor", b0, 1, 1])
    add("the last bundle cut by a byte", 5, b1, "300", ["cut", b1, len(FILES["300"][b1]) - 1])
    add("an entry behind a bundle", 5, b0, "300", ["append", b0, text(b"\0\0")])
    add("an empty bundle", 5, b1, "300", ["put", b1, ""])
    swapped = [b"entry %d" % i for i in range(256)]
    swapped[40], swapped[41] = swapped[41], swapped[40]
    add("two entries swapped", 5, "entry 40", "300", ["put", b0, text(encode_bundle(swapped))])
    merged = [b"entry %d" % i for i in range(255)]
    add("an entry left out", 5, b0, "300", ["put", b0, text(encode_bundle(merged))])
    add("an entry left out and another one in its place", 5, "entry 255", "300", ["put", b0, text(encode_bundle([*merged, b""]))])  # fmt: skip
    add("a bad entry behind the position of the last audit", 5, "entry 299", "300", ["xor", b1, len(FILES["300"][b1]) - 1, 1], since=["299", 299])  # fmt: skip
    return found


def leaf(
    page: int, previous: bytes | None, *, last: bool = False, request: str = "11" * 32, **fields: Any
) -> bytes:
    values: dict[str, Any] = {
        "start": 16 * page, "end": 16 * page + 16, "prompt_len": 10, "tokens": "22" * 32, "kv": "33" * 32,
        "anchor": None, "fieldprint": None, "model": "44" * 32, "sampler": {"method": "greedy"}, "attention": {"g": "0.1"},
    }  # fmt: skip
    before = None if previous is None else leaf_hash(previous).hex()
    text_digest = "55" * 32 if last else None
    return Commitment(
        request=request, page=page, previous=before, text=text_digest, **(values | fields)
    ).to_bytes()


def entries() -> list[Vector]:
    first = leaf(0, None)
    second = leaf(1, first)
    third = leaf(2, second, last=True)
    alone = leaf(0, None, last=True, request="66" * 32)
    abort = AbortEntry("11" * 32, 1, "damaged context pages [0]").to_bytes()
    promote = Promotion("aa" * 32, "bb" * 32, "cc" * 32, "identity", ("dd" * 32,)).to_entry()
    revoke = revocation_entry(sign_revocation("aa" * 32, "lost", NOW, [OWNER]))

    def edited(entry: bytes, **changes: Any) -> bytes:
        return rfc8785.dumps({**json.loads(entry), **changes})

    def without(entry: bytes, name: str) -> bytes:
        return rfc8785.dumps({key: value for key, value in json.loads(entry).items() if key != name})

    envelope = json.loads(revoke)["envelope"]
    rows: list[tuple[str, list[bytes], list[int]]] = [
        ("good, one of each type", [promote, first, abort, second, third, revoke], []),
        ("good, entries of others between", [b"text", first, b"{}", b'{"type":"x"}', second, b"\xff", third], []),
        ("good, two requests interleaved", [first, alone, second, third], []),
        ("good, the same prompt and salt again", [alone, alone], []),
        ("good, an entry that is no object", [b"[]", b'"promote"', b"{"], []),
        ("a commitment of version 2", [edited(first, v=2)], [0]),
        ("a commitment with another field", [edited(first, x=1)], [0]),
        ("a commitment without a field", [without(first, "kv")], [0]),
        ("a commitment whose version is true", [edited(first, v=True)], [0]),
        ("a commitment that covers nothing", [edited(first, end=0)], [0]),
        ("a digest in capitals", [edited(first, kv="AB" * 32)], [0]),
        ("a chain that begins at page 1", [second], [0]),
        ("a page left out", [first, third], [1]),
        ("a page twice", [first, second, second], [2]),
        ("another leaf in front than the page names", [leaf(0, None, prompt_len=9), second], [1]),
        ("a gap of positions", [first, leaf(1, first, start=17)], [1]),
        ("positions that overlap", [first, leaf(1, first, start=15)], [1]),
        ("a page behind the end of the answer", [alone, leaf(1, alone, request="66" * 32)], [1]),
        ("an abort of version 2", [edited(abort, v=2)], [0]),
        ("an abort without a reason", [without(abort, "reason")], [0]),
        ("an abort of a negative page", [edited(abort, page=-1)], [0]),
        ("an abort of page true", [edited(abort, page=True)], [0]),
        ("an abort of a request that is no digest", [edited(abort, request="11")], [0]),
        ("a promotion of an unknown kind", [edited(promote, kind="king")], [0]),
        ("a promotion whose supersedes is no list", [edited(promote, supersedes="dd")], [0]),
        ("a promotion with a digest too short", [edited(promote, anchor="aa")], [0]),
        ("a revocation signed by a stranger", [revocation_entry(sign_revocation("aa" * 32, "x", NOW, [STRANGER]))], [0]),
        ("a revocation signed by a key that signs other things", [revocation_entry(sign_revocation("aa" * 32, "x", NOW, [SECOND]))], [0]),
        ("a revocation whose envelope was changed", [edited(revoke, envelope=text(base64.b64decode(envelope).replace(b"eyJ", b"eyK", 1)))], [0]),
        ("a revocation whose envelope is no base64", [edited(revoke, envelope="?")], [0]),
        ("a revocation without an envelope", [without(revoke, "envelope")], [0]),
        ("several bad ones, all are reported", [second, promote, edited(abort, v=0), third], [0, 2]),
        ("good, not canonical JSON is another's entry", [first.replace(b":", b": ", 1), b" " + abort], []),
    ]  # fmt: skip
    return [{"desc": d, "entries": [text(e) for e in rows_], "want": want} for d, rows_, want in rows]


def requests() -> list[Vector]:
    found: list[Vector] = []
    t0, tail = tile_path(0, 0), tile_path(0, 1, 44)
    good = {
        "Content-Type": "application/octet-stream",
        "Cache-Control": "public, max-age=31536000, immutable",
    }
    partial = {**good, "Cache-Control": "public, max-age=60"}
    signed = FILES["300"]["checkpoint"]

    def add(
        desc: str, status: int, request: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> None:
        row = {"desc": desc, "want_status": status, "want_headers": headers or {}}
        found.append(
            {
                **row,
                "want_body": None if body is None else text(body),
                "request": text(request.encode("latin-1")),
            }
        )

    def get(path: str, *headers: str, method: str = "GET") -> str:
        return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: log", *headers, "Connection: close", "", ""])

    def post(path: str, body: str, *headers: str) -> str:
        return get(path, f"Content-Length: {len(body)}", *headers, method="POST") + body

    bearer = f"Authorization: Bearer {TOKEN}"
    plain = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-cache"}
    add("good, the checkpoint", 200, get("/checkpoint"), signed, plain)
    add(
        "good, its head",
        200,
        get("/checkpoint", method="HEAD"),
        b"",
        {**plain, "Content-Length": str(len(signed))},
    )
    add("good, a full tile", 200, get(f"/{t0}"), FILES["300"][t0], good)
    add("good, a partial tile", 200, get(f"/{tail}"), FILES["300"][tail], partial)
    add("good, a bundle", 200, get(f"/{bundle_path(0)}"), FILES["300"][bundle_path(0)], good)
    add(
        "good, metrics",
        200,
        get("/metrics"),
        None,
        {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )
    add(
        "good, any tag is known",
        304,
        get("/checkpoint", "If-None-Match: *"),
        b"",
        {"Cache-Control": "no-cache"},
    )
    add("another tag is not", 200, get("/checkpoint", 'If-None-Match: "x", W/"y"'), signed)
    for desc, path in (
        ("up out of the folder", "/../log.key"), ("up in the middle", "/tile/../../log.key"),
        ("up behind a tile", f"/{t0}/../../../log.key"), ("up in percent", "/%2e%2e/log.key"),
        ("a slash in percent", "/tile%2f0%2f000"), ("up with backslashes", "/..\\log.key"), ("twice in percent", "/%252e%252e/log.key"),
        ("an absolute path", "//etc/passwd"), ("a zero byte in percent", f"/{t0}%00"), ("a query", f"/{t0}?a=b"),
        ("a fragment", f"/{t0}#a"), ("a slash behind", f"/{t0}/"), ("two slashes", "/tile//0/000"),
        ("the writer's lock", "/.lock"), ("a folder", "/tile"), ("a folder of partial tiles", "/tile/0/001.p"),
        ("a part of a file being written", f"/{t0}.part"), ("nothing of a log", "/index.html"), ("an empty path", "/"),
        ("a level with a leading zero", "/tile/00/000"), ("level 64", "/tile/64/000"), ("a negative level", "/tile/-1/000"),
        ("an index of two digits", "/tile/0/00"), ("an index of four digits", "/tile/0/0000"), ("an index with a zero group", "/tile/0/x000/000"),
        ("an index without its x", "/tile/0/000/001"), ("a group without digits", "/tile/0/x/000"), ("digits of another script", "/tile/0/\u00b2\u00b2\u00b2"),
        ("a width of 0", "/tile/0/001.p/0"), ("a width of 256", "/tile/0/000.p/256"), ("a width with a leading zero", "/tile/0/001.p/044"),
        ("a width too large for the checkpoint", "/tile/0/001.p/45"), ("a full tile that is not full yet", "/tile/0/001"),
        ("a bundle beyond the checkpoint", "/tile/entries/002"), ("a level that the tree does not have", "/tile/2/000.p/1"),
        ("the absolute form of a proxy", "http://log/checkpoint"), ("a checkpoint in capitals", "/CHECKPOINT"),
    ):  # fmt: skip
        add(desc, 404, get(path))
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
        add(f"{method}", 501, get("/checkpoint", method=method))
    add("writing without a token", 401, post("/add", "x"), None, {"WWW-Authenticate": 'Bearer realm="log"'})
    add(
        "writing with another token",
        401,
        post("/add", "x", "Authorization: Bearer another-token-of-the-vectors"),
    )
    add("writing with the token's beginning", 401, post("/add", "x", f"Authorization: Bearer {TOKEN[:-1]}"))
    add("writing with more than the token", 401, post("/add", "x", f"{bearer}x"))
    add("writing with an empty token", 401, post("/add", "x", "Authorization: Bearer "))
    add(
        "writing with the token as a password",
        401,
        post("/add", "x", f"Authorization: Basic {text(TOKEN.encode())}"),
    )
    add("writing with the token in the query", 405, post(f"/add?access_token={TOKEN}", "x"))
    add("the token on another path", 405, post("/checkpoint", "x", bearer))
    add("the token opens nothing to GET", 404, get("/add", bearer))
    add("an entry of 65,536 bytes", 413, get("/add", "Content-Length: 65536", bearer, method="POST"))
    add("an entry of 999,999,999 bytes", 413, get("/add", "Content-Length: 999999999", bearer, method="POST"))
    add("an entry without a length", 411, get("/add", bearer, method="POST"))
    add(
        "an entry in chunks",
        411,
        get("/add", "Transfer-Encoding: chunked", bearer, method="POST") + "1\r\nx\r\n0\r\n\r\n",
    )
    add(
        "two lengths",
        411,
        get("/add", "Content-Length: 1", "Content-Length: 2", bearer, method="POST") + "xy",
    )
    add("a length and chunks", 411, post("/add", "x", "Transfer-Encoding: chunked", bearer))
    add("a negative length", 411, get("/add", "Content-Length: -1", bearer, method="POST"))
    add("a length with a sign", 411, get("/add", "Content-Length: +1", bearer, method="POST") + "x")
    add("a length of ten digits", 411, get("/add", "Content-Length: 0000000001", bearer, method="POST") + "x")
    add(
        "a body behind GET",
        413,
        get("/checkpoint", "Content-Length: 30") + "GET /checkpoint HTTP/1.1\r\n\r\n..",
    )
    add("a request line of 70,000 bytes", 414, get("/" + "a" * 70000))
    add("no HTTP", 400, "hello log\r\n\r\n")
    add("a header of 70,000 bytes", 431, get("/checkpoint", "A: " + "a" * 70000))
    add("two hundred headers", 431, get("/checkpoint", *[f"A{i}: b" for i in range(200)]))
    return found


def responses() -> list[Vector]:
    signed = FILES["300"]["checkpoint"].decode()
    ok = f"HTTP/1.1 200 OK\r\nContent-Length: {len(signed.encode())}\r\n\r\n" + signed
    found: list[Vector] = []

    def add(desc: str, want: str, *answers: str | bytes) -> None:
        sent = [text(a if isinstance(a, bytes) else a.encode()) for a in answers]
        found.append({"desc": desc, "want": want, "answers": sent})

    def status(line: str, *headers: str, body: str = "") -> str:
        return "\r\n".join([f"HTTP/1.1 {line}", *headers, f"Content-Length: {len(body)}", "", body])

    half = f"{len(signed.encode()) // 2:x}"
    first, second = signed.encode()[: len(signed.encode()) // 2], signed.encode()[len(signed.encode()) // 2 :]
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        f"{len(c):x}\r\n".encode() + c + b"\r\n" for c in (first, second, b"")
    )
    add("good", "ok", ok)
    add("good, in chunks", "ok", chunks)
    add("good, a server that needs a second try", "ok", status("503 Busy", "Retry-After: 0"), ok)
    add("good, a connection that breaks once", "ok", "", ok)
    add("good, an answer cut off once", "ok", ok[:-5], ok)
    add(
        "good, a redirect on the same server",
        "ok",
        status("302 Found", "Location: /elsewhere/checkpoint"),
        ok,
    )
    add("no such file", "missing", status("404 Not Found"))
    add("gone", "missing", status("410 Gone"))
    add("forbidden", "refused", status("403 Forbidden"))
    add("an answer cut off each time", "refused", *[ok[:-5]] * 4)
    add("chunks cut off each time", "refused", *[chunks[:-9]] * 4)
    add("busy each time", "refused", *[status("503 Busy", "Retry-After: 0")] * 4)
    add("no HTTP", "refused", *["hello\r\n\r\n"] * 4)
    add(
        "a redirect to another scheme",
        "refused",
        status("302 Found", "Location: https://127.0.0.1/checkpoint"),
    )
    add("a redirect to a file", "refused", status("302 Found", "Location: file:///etc/passwd"))
    add("a redirect to nowhere", "refused", status("302 Found", "Location: http://[bad/"))
    add("a redirect with a line break in it", "refused", status("302 Found", "Location: /a\x01b c"))
    add("redirects in a circle", "refused", *[status("307 Temporary Redirect", "Location: /checkpoint")] * 6)
    add(
        "a content encoding that was not asked for",
        "refused",
        status("200 OK", "Content-Encoding: br", body="x"),
    )
    add("gzip that is none", "refused", status("200 OK", "Content-Encoding: gzip", body="x" * 20))
    add("an empty gzip", "refused", status("200 OK", "Content-Encoding: gzip"))
    add(
        "a chunk length that is none",
        "refused",
        *["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"] * 4,
    )
    add(
        "a chunk longer than it says",
        "refused",
        *[f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{half}\r\nabc\r\n"] * 4,
    )
    add("two hundred headers", "refused", *["HTTP/1.1 200 OK\r\n" + "A: b\r\n" * 200 + "\r\n"] * 4)
    return found


def render() -> dict[str, str]:
    """File name to content."""
    made: dict[str, Any] = {
        "logs.json": {
            "vkey": str(SIGNER.verifier_key),
            "token": TOKEN,
            "logs": {name: {f: text(data) for f, data in files.items()} for name, files in FILES.items()},
        },
        "checkpoint.json": checkpoints(),
        "tile.json": tiles(),
        "subtree.json": subtrees(),
        "audit.json": audits(),
        "entries.json": entries(),
        "request.json": requests(),
        "response.json": responses(),
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for name, content in render().items():
        (FOLDER / name).write_text(content)
