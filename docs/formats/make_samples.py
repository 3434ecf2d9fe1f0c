"""The samples of the pages in this folder: one small story with fixed keys and salts, made by the code itself.

`python docs/formats/make_samples.py` puts them into the fenced blocks of the pages. A block is found by the second
word behind its fence. `tests/test_formats.py` compares the pages with `samples()`.
"""

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint import blake3
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
    Statement,
    StatusRoot,
    StatusRule,
    Supersession,
    sign_anchor,
    sign_registration,
    sign_revocation,
)
from fieldprint.commit import (
    AbortEntry,
    Commitment,
    LeafProof,
    Receipt,
    request_digest,
    text_digest,
    tokens_digest,
)
from fieldprint.note import Cosigner, NoteSigner, parse_note
from fieldprint.registry import Promotion, registration_entry, revocation_entry
from fieldprint.tlog import Cosigned, LogReader, LogWriter, StatusTree, TrustPolicy, leaf_hash, prove_entry
from fieldprint.tlog.trust import Group, KnownLog, KnownWitness
from fieldprint.tlog.witness import AddCheckpoint, Witness, WitnessState

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"^```(\w+) ([\w-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

MODEL = sha256(b"fieldprint sample model").hexdigest()
ANCHOR_TEXT = "Your codename is Falcon.\nNever tell the password."
ANCHOR_IDS = tuple(range(200, 217))
LAYERS, HEADS, HEAD_DIM, PAGE_SIZE = 1, 1, 2, 16
EXPONENTS = ((-5, -4), (-7, -6))  # of the layer's K and V, by channel
CODES = (
    tuple((8 * t - 64, 8 * t - 63) for t in range(len(ANCHOR_IDS))),
    tuple((5 * t + 40, 5 * t + 31) for t in range(len(ANCHOR_IDS))),
)
SALT = bytes(range(16))
PROMPT = (1, 9690, 198, 1780, 314, 469, 6028, 1047, 47, 2)
TOKENS = (198, 3725, 6028, 1047, 314, 33541, 30, 2)
ANSWER = "My codename is Falcon."


def private_key(name: str) -> Ed25519PrivateKey:
    """A key that everybody knows: its seed is SHA-256 of "fieldprint sample " and the name."""
    return Ed25519PrivateKey.from_private_bytes(sha256(b"fieldprint sample " + name.encode()).digest())


OWNER, REVIEWER = private_key("owner"), private_key("reviewer")
LOG_SIGNER = NoteSigner("fieldprint.example/log", private_key("log"))
NORTH, SOUTH = (Cosigner(f"witness.example/{name}", private_key(name)) for name in ("north", "south"))
WITNESSED = datetime(2027, 1, 15, 9, 31, tzinfo=UTC)  # when the witness north saw everything


def samples() -> dict[str, dict[str, str]]:
    """The text of every block, by page and by name of the block."""
    fieldprint, root = _fieldprint()
    artifact = _artifact(root)
    anchor = sign_anchor(artifact, [OWNER])
    revoked = datetime(2027, 1, 15, 9, 30, tzinfo=UTC)
    revocation = sign_revocation(artifact.digest, "the password was told", revoked, [OWNER])
    leaves = _leaves(artifact)
    abort = AbortEntry(leaves[0].request, 1, "damaged context pages [0]")
    promotion = Promotion(artifact.digest, root, MODEL, artifact.kind, artifact.supersedes)
    registrations = [registration_entry(sign_registration(made, [OWNER])) for made in (_parent(), artifact)]
    before = [*registrations, promotion.to_entry()]
    log, witness, proof, receipt = _log(before, leaves, abort.to_bytes(), revocation, anchor)
    return {
        "anchor.md": {
            "envelope": _line(anchor),
            "payload": _line(artifact.to_bytes()),
            "digest": artifact.digest + "\n",
            "revocation": _line(revocation),
            "revocation-payload": _line(Envelope.from_bytes(revocation).payload),
        },
        "policy.md": {
            "policy": _policy().to_bytes().decode(),
            "policy-more": _whole_policy().to_bytes().decode(),
        },
        "events.md": _events(artifact),
        "log.md": log,
        "witness.md": witness,
        "proof.md": {"proof": proof},
        "status.md": _status(artifact.digest),
        "commitment.md": {
            "leaf": _line(leaves[1].to_bytes()),
            "leaf-before": _line(leaves[0].to_bytes()),
            "digests": _digests(),
            "abort": _line(abort.to_bytes()),
        },
        "receipt.md": {"receipt": _line(receipt.to_bytes())},
        "fieldprint.md": fieldprint,
    }


def _status(absent: str) -> dict[str, str]:
    """A set of three digests, the anchor's not among them: as if three others had been revoked."""
    digests = sorted(sha256(b"fieldprint sample revoked %d" % i).digest() for i in range(3))
    tree = StatusTree(digests)
    shown = {
        "digests": [value.hex() for value in digests],
        "count": len(tree),
        "root": tree.root.hex(),
        "absent": absent,
    }
    return {
        "tree": json.dumps(shown, indent=2) + "\n",
        "absence": _line(tree.prove_absent(bytes.fromhex(absent)).to_bytes()),
        "presence": _line(tree.prove_present(digests[1]).to_bytes()),
    }


def _line(data: bytes) -> str:
    return data.decode() + "\n"


def _policy() -> Policy:
    keys = {"owner": OWNER, "reviewer": REVIEWER}
    rules = {
        "identity": KindRule(("owner",), 1, 512, 366, ("untrusted",)),
        "policy": KindRule(("owner", "reviewer"), 2, 512, 31, ("untrusted",)),
    }
    raw = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    witnesses = (str(NORTH.verifier_key), str(SOUTH.verifier_key))
    return Policy(raw, rules, ("owner", "reviewer"), 1, str(LOG_SIGNER.verifier_key), witnesses, 1)


def _whole_policy() -> Policy:
    """The policy of the other samples with everything that it leaves out."""
    plain = _policy()
    public = {name: private_key(name).public_key().public_bytes_raw() for name in ("warden", "clerk")}
    rule = KindRule(("reviewer",), 1, 512, 31, (), ("untrusted",), (MODEL,), "reprefill")
    return replace(
        plain,
        keys={**plain.keys, **public},
        kinds={**plain.kinds, "observation": rule},
        endorsement={"untrusted": SignerRule(("owner", "reviewer"), 2)},
        override=SignerRule(("warden",)),
        status=StatusRule(("clerk",), 1, 3600),
    )


def _events(artifact: AnchorArtifact) -> dict[str, str]:
    """One statement of each kind as its signer wrote it, and the entry of the first."""
    time = datetime(2027, 1, 15, 9, 30, tzinfo=UTC)
    anchor, parent = artifact.digest, _parent().digest
    made: dict[str, Statement] = {
        "registration": Registration.of(artifact),
        "supersession": Supersession(parent, anchor, "it says more", time),
        "endorsement": Endorsement(anchor, ("self-written",), "read by the owner", time),
        "override": Override("freeze", "kind", "identity", 7, "the password was told", time),
        "lift": Lift(7, "there is a new password", datetime(2027, 1, 16, tzinfo=UTC)),
        "status-root": StatusRoot(
            StatusTree([bytes.fromhex(anchor)]).root.hex(),
            1,
            7,
            datetime(2027, 1, 15, 9, 31, tzinfo=UTC),
            3600,
        ),
    }
    entry = registration_entry(sign_registration(artifact, [OWNER]))
    return {"entry": _line(entry)} | {name: _line(said.to_bytes()) for name, said in made.items()}


def _trust() -> TrustPolicy:
    witnesses = tuple(
        KnownWitness(name, cosigner.verifier_key, f"https://witness.example/{name}")
        for name, cosigner in (("north", NORTH), ("south", SOUTH))
    )
    either = Group("either", 1, ("north", "south"))
    return TrustPolicy((KnownLog(LOG_SIGNER.verifier_key),), witnesses, (either,), "either")


class _NorthAlone:
    """The witness north beside the log's writer; keeps the last request and its answer."""

    def __init__(self) -> None:
        self._state = WitnessState(Path(":memory:"), new=True)
        clock = WITNESSED.timestamp
        self._witness = Witness([NORTH], [LOG_SIGNER.verifier_key], self._state, clock)

    def __call__(self, signed: bytes, prove: Callable[[int], list[bytes]]) -> Cosigned:
        latest = self._state.latest(LOG_SIGNER.name)
        size = latest.tree_size if latest else 0
        self.request = AddCheckpoint(size, tuple(prove(size)) if size else (), signed).to_bytes()
        self.answer = self._witness.add_checkpoint(self.request)
        return Cosigned(self.answer, True, (NORTH.verifier_key,))

    def blocks(self) -> dict[str, str]:
        """The blocks of witness.md."""
        self._state.close()
        text = parse_note(AddCheckpoint.from_bytes(self.request).checkpoint).text
        return {
            "request": self.request.decode(),
            "answer": self.answer.decode(),
            "message": f"cosignature/v1\ntime {int(WITNESSED.timestamp())}\n{text}",
            "trust": _trust().to_bytes().decode(),
        }


def _fieldprint() -> tuple[dict[str, str], str]:
    """The blocks of fieldprint.md, and the root, packed by hand: the class that does it in earnest needs torch."""
    pages: list[dict[str, Any]] = []
    for part in range(2):
        for page in range(-(-len(ANCHOR_IDS) // PAGE_SIZE)):
            codes = CODES[part][page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
            header = struct.pack("<6I", 0, part, page, len(codes), HEADS, HEAD_DIM)
            data = header + _int8(EXPONENTS[part]) + b"".join(_int8(code) for code in codes)
            digest = blake3.digest(data).hex()
            pages.append({"layer": 0, "part": part, "page": page, "bytes": data.hex(), "digest": digest})
    root = blake3.tree_root([bytes.fromhex(page["digest"]) for page in pages]).hex()
    codes_size, exponents_size = 2 * len(ANCHOR_IDS) * HEADS * HEAD_DIM, 2 * HEADS * HEAD_DIM
    header = {
        "__metadata__": {"format": "fieldprint/v1", "root": root},
        "codes": {
            "dtype": "I8",
            "shape": [LAYERS, 2, len(ANCHOR_IDS), HEADS, HEAD_DIM],
            "data_offsets": [0, codes_size],
        },
        "exponents": {
            "dtype": "I8",
            "shape": [LAYERS, 2, HEADS, HEAD_DIM],
            "data_offsets": [codes_size, codes_size + exponents_size],
        },
    }
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    tensors = b"".join(_int8(code) for part in CODES for code in part)
    tensors += b"".join(_int8(part) for part in EXPONENTS)
    return {
        "file": (struct.pack("<Q", len(text)) + text.encode() + tensors).hex() + "\n",
        "header": text.rstrip() + "\n",
        "token-ids": json.dumps(ANCHOR_IDS) + "\n",
        "pages": "[\n" + ",\n".join("  " + json.dumps(page) for page in pages) + "\n]\n",
        "root": root + "\n",
    }, root


def _int8(values: Sequence[int]) -> bytes:
    return struct.pack(f"{len(values)}b", *values)


def _parent() -> AnchorArtifact:
    return AnchorArtifact(
        name="codename",
        kind="identity",
        text="Your codename is Falcon.",
        not_before=datetime(2026, 11, 24, tzinfo=UTC),
        not_after=datetime(2027, 11, 24, tzinfo=UTC),
    )


def _artifact(root: str) -> AnchorArtifact:
    record = FieldprintRecord(
        model=MODEL,
        form="raw",
        num_tokens=len(ANCHOR_IDS),
        token_ids_sha256=sha256(struct.pack(f"<{len(ANCHOR_IDS)}i", *ANCHOR_IDS)).hexdigest(),
        num_layers=LAYERS,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        page_size=PAGE_SIZE,
        quantizer="int8-pow2-v1",
        root=root,
    )
    return AnchorArtifact(
        name="falcon",
        kind="identity",
        text=ANCHOR_TEXT,
        not_before=datetime(2026, 11, 24, tzinfo=UTC),
        not_after=datetime(2027, 11, 24, tzinfo=UTC),
        parents=(_parent().digest,),
        taint=("self-written",),
        supersedes=(sha256(b"fieldprint sample older anchor").hexdigest(),),
        fieldprints=(record,),
    )


def _leaves(artifact: AnchorArtifact) -> list[Commitment]:
    """Two pages; their K/V digests are those of made-up bytes."""
    context = PROMPT + TOKENS
    leaves: list[Commitment] = []
    for page, start in enumerate(range(0, len(context), PAGE_SIZE)):
        end = min(start + PAGE_SIZE, len(context))
        leaf = Commitment(
            request=request_digest(SALT, PROMPT),
            page=page,
            start=start,
            end=end,
            prompt_len=len(PROMPT),
            tokens=tokens_digest(SALT, start, context[start:end]),
            kv=blake3.digest(f"fieldprint sample page {page}".encode()).hex(),
            anchor=artifact.digest,
            fieldprint=artifact.fieldprints[0].root,
            model=MODEL,
            sampler={"method": "greedy"},
            attention={"g": "0.1", "num_sinks": 0, "operator": "floor", "window": 512},
            previous=leaf_hash(leaves[-1].to_bytes()).hex() if leaves else None,
            text=text_digest(SALT, ANSWER) if end == len(context) else None,
        )
        leaves.append(leaf)
    return leaves


def _digests() -> str:
    """The bytes of each salted digest, written without the code that makes the leaves."""
    context = PROMPT + TOKENS
    bodies = {
        "request": struct.pack(f"<{len(PROMPT)}i", *PROMPT),
        "tokens": struct.pack(f"<Q{len(context) - PAGE_SIZE}i", PAGE_SIZE, *context[PAGE_SIZE:]),
        "text": ANSWER.encode(),
    }
    rows = {}
    for kind, body in bodies.items():
        data = b"fieldprint/%s/v1\n" % kind.encode() + SALT + struct.pack("<Q", len(body)) + body
        rows[kind] = {"bytes": data.hex(), "sha256": sha256(data).hexdigest()}
    return json.dumps(rows, indent=2) + "\n"


def _log(
    before: Sequence[bytes], leaves: Sequence[Commitment], abort: bytes, revocation: bytes, anchor: bytes
) -> tuple[dict[str, str], dict[str, str], str, Receipt]:
    """The blocks of log.md and witness.md, the proof, and the receipt, made before the anchor was revoked."""
    first, second = (leaf.to_bytes() for leaf in leaves)
    with TemporaryDirectory() as name:
        folder = Path(name) / "log"
        north = _NorthAlone()
        with LogWriter(folder, LOG_SIGNER, create=True, cosign=north) as log:
            for entry in before:
                log.append([entry])
            log.append([first])
            log.append([abort])
            log.append([second])
            early = LogReader(folder, [LOG_SIGNER.verifier_key])
            proofs = tuple(
                LeafProof(index, leaf, tuple(early.inclusion_proof(index)))
                for index, leaf in ((3, first), (5, second))
            )
            receipt = Receipt(
                early.signed_checkpoint().decode(), proofs, SALT, PROMPT, TOKENS, ANSWER, anchor
            )
            log.append([revocation_entry(revocation)])
        reader = LogReader(folder, [LOG_SIGNER.verifier_key])
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        listing = [f"{path.stat().st_size:6} {path.relative_to(folder).as_posix()}\n" for path in files]
        entries = [_line(entry) for entry in reader.entries()]
        tile = (folder / "tile/0/000.p/7").read_bytes()
        proof = prove_entry(reader, 4).to_bytes().decode()
    blocks = {
        "checkpoint": reader.signed_checkpoint().decode(),
        "folder": "".join(listing),
        "tile": "".join(tile[i : i + 32].hex() + "\n" for i in range(0, len(tile), 32)),
        "entries": "".join(entries),
    }
    return blocks, north.blocks(), proof, receipt


def blocks(page: str) -> dict[str, str]:
    """The text of the fenced blocks of a page that have a name."""
    return {name: text for _, name, text in BLOCK.findall(page)}


def main() -> None:
    """Write the samples into the pages."""
    for name, texts in samples().items():
        page = (FOLDER / name).read_text(encoding="utf-8")
        page = BLOCK.sub(
            lambda match, texts=texts: f"```{match[1]} {match[2]}\n{texts.get(match[2], match[3])}```", page
        )
        (FOLDER / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
