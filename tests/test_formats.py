"""The pages in docs/formats: their samples are what the code writes, and the parsers and checks read them."""

import importlib.util
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fieldprint.anchor import (
    KINDS,
    AnchorArtifact,
    Endorsement,
    Envelope,
    Lift,
    Override,
    Policy,
    Registration,
    Revocation,
    StatusRoot,
    Supersession,
    valid_signers,
)
from fieldprint.blake3.naive import naive_digest, naive_root
from fieldprint.commit import Commitment, Receipt, request_digest, text_digest, tokens_digest
from fieldprint.errors import VerificationError
from fieldprint.note import COSIGNATURES, VerifierKey, verify_note, verify_signatures
from fieldprint.registry import Registry
from fieldprint.tlog import (
    AbsenceProof,
    Checkpoint,
    LogProof,
    LogReader,
    PresenceProof,
    TrustPolicy,
    leaf_hash,
    verify_absent,
    verify_consistency,
    verify_log_proof,
    verify_present,
)
from fieldprint.tlog.tile import encode_bundle
from fieldprint.tlog.witness import AddCheckpoint, RefusalError, Witness, WitnessState
from fieldprint.verify import verify_anchor, verify_receipt

FOLDER = Path(__file__).parent.parent / "docs" / "formats"
PAGES = (
    "anchor.md",
    "policy.md",
    "events.md",
    "log.md",
    "witness.md",
    "proof.md",
    "status.md",
    "commitment.md",
    "receipt.md",
    "fieldprint.md",
)
NOW = datetime(2027, 2, 1, 12, tzinfo=UTC)  # the time that README.md names
NUMBERED = re.compile(r"^(\d+)\. ", re.MULTILINE)
REFERENCE = re.compile(r"[Ll]ines?\s+(\d+)(?:\s+(?:to|and)\s+(\d+))*\s+of\s+\[([a-z]+\.md)\]")


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_samples", FOLDER / "make_samples.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
BLOCKS = {name: GENERATOR.blocks((FOLDER / name).read_text(encoding="utf-8")) for name in PAGES}


def sample(page: str, name: str) -> bytes:
    """A sample of canonical JSON: the block without the newline before its closing fence."""
    return BLOCKS[page][name].removesuffix("\n").encode()


def refused(attempt: Any) -> int:
    with pytest.raises(VerificationError) as caught:
        attempt()
    return caught.value.check


@pytest.fixture
def policy() -> Policy:
    return Policy.from_bytes(BLOCKS["policy.md"]["policy"].encode())


@pytest.fixture
def artifact() -> AnchorArtifact:
    return AnchorArtifact.from_bytes(sample("anchor.md", "payload"))


@pytest.fixture
def receipt() -> Receipt:
    return Receipt.from_bytes(sample("receipt.md", "receipt"))


@pytest.fixture
def entries() -> list[bytes]:
    return BLOCKS["log.md"]["entries"].encode().splitlines()


@pytest.fixture
def log(tmp_path: Path, policy: Policy, entries: list[bytes]) -> LogReader:
    """A log's folder made of the blocks of log.md alone."""
    contents = {
        "checkpoint": BLOCKS["log.md"]["checkpoint"].encode(),
        "tile/0/000.p/7": bytes.fromhex(BLOCKS["log.md"]["tile"]),
        "tile/entries/000.p/7": encode_bundle(entries),
    }
    sizes = {path: int(size) for size, path in map(str.split, BLOCKS["log.md"]["folder"].splitlines())}
    for path, data in contents.items():
        assert sizes[path] == len(data)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return LogReader(tmp_path, [policy.log_key])


def test_the_pages_hold_exactly_what_the_generator_makes() -> None:
    assert GENERATOR.samples() == BLOCKS, "run docs/formats/make_samples.py"


def test_the_generator_needs_neither_torch_nor_numpy() -> None:
    script = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['numpy'] = None;"
        f"runpy.run_path({str(FOLDER / 'make_samples.py')!r})['samples']()"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_index_names_every_page() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in FOLDER.glob("*.md")} == {"README.md", *PAGES}
    assert all(f"| [{name}]({name}) |" in index for name in PAGES)


def test_the_policy_round_trips(policy: Policy) -> None:
    assert policy.to_bytes().decode() == BLOCKS["policy.md"]["policy"]
    assert set(policy.kinds) <= set(KINDS)


def test_the_anchor_is_verified_by_the_policy(policy: Policy, artifact: AnchorArtifact) -> None:
    signed = sample("anchor.md", "envelope")
    envelope = Envelope.from_bytes(signed)
    assert envelope.to_bytes() == signed and envelope.payload == sample("anchor.md", "payload")
    assert artifact.to_bytes() == envelope.payload
    digest = sample("anchor.md", "digest").decode()
    assert digest == artifact.digest == sha256(envelope.payload).hexdigest()
    (record,) = artifact.fieldprints
    verified = verify_anchor(signed, policy, now=NOW, registry=None, model=record.model)
    assert (verified.digest, verified.signers, verified.record) == (digest, ("owner",), record)


def test_the_revocation_is_signed_by_a_revoker_of_the_policy(
    policy: Policy, artifact: AnchorArtifact
) -> None:
    envelope = Envelope.from_bytes(sample("anchor.md", "revocation"))
    assert envelope.payload == sample("anchor.md", "revocation-payload")
    revocation = Revocation.from_bytes(envelope.payload)
    assert revocation.anchor == artifact.digest and revocation.to_bytes() == envelope.payload
    assert len(valid_signers(envelope, policy.trusted(policy.revokers))) >= policy.revocation_threshold


@pytest.mark.parametrize(
    ("block", "parse"),
    [
        ("registration", Registration.from_bytes),
        ("supersession", Supersession.from_bytes),
        ("endorsement", Endorsement.from_bytes),
        ("override", Override.from_bytes),
        ("lift", Lift.from_bytes),
        ("status-root", StatusRoot.from_bytes),
    ],
)
def test_the_statements_are_read_and_written_again(block: str, parse: Any) -> None:
    assert parse(sample("events.md", block)).to_bytes() == sample("events.md", block)


def test_the_entry_of_the_registration_is_the_log_s(artifact: AnchorArtifact, entries: list[bytes]) -> None:
    assert sample("events.md", "entry") == entries[1]
    assert Registration.of(artifact).to_bytes() == sample("events.md", "registration")


def test_the_policy_with_everything_round_trips() -> None:
    text = BLOCKS["policy.md"]["policy-more"]
    whole = Policy.from_bytes(text.encode())
    assert whole.to_bytes().decode() == text
    assert whole.endorsement and whole.override and whole.status and whole.kinds["observation"].models


def test_the_checkpoint_is_signed_by_the_log_of_the_policy(policy: Policy) -> None:
    text = verify_note(BLOCKS["log.md"]["checkpoint"].encode(), [policy.log_key])
    checkpoint = Checkpoint.from_text(text)
    assert checkpoint.to_text() == text
    assert (checkpoint.origin, checkpoint.tree_size) == (policy.log_key.name, 7)


def test_entries_and_tile_lead_to_the_checkpoint(log: LogReader, entries: list[bytes]) -> None:
    assert list(log.entries()) == entries
    assert log.root_hash() == log.checkpoint().root_hash
    kinds = [json.loads(entry)["type"] for entry in entries]
    assert kinds == ["sign", "sign", "promote", "commitment", "abort", "commitment", "revoke"]


def test_the_registry_follows_the_log(log: LogReader, policy: Policy, artifact: AnchorArtifact) -> None:
    registry = Registry.replay(log.entries(), policy)
    record = registry.anchors[artifact.digest]
    assert record.registration == Registration.of(artifact) and (record.index, record.promotions) == (1, [2])
    assert registry.superseded == {(digest, artifact.kind): artifact.digest for digest in artifact.supersedes}
    assert registry.num_refused == 0
    revocation = Revocation.from_bytes(sample("anchor.md", "revocation-payload"))
    assert registry.revoked == {artifact.digest: revocation}
    signed = sample("anchor.md", "envelope")
    assert refused(lambda: verify_anchor(signed, policy, now=NOW, registry=registry)) == 8


def test_the_leaves_are_those_of_log_and_receipt(entries: list[bytes], receipt: Receipt) -> None:
    before, last = (sample("commitment.md", name) for name in ("leaf-before", "leaf"))
    for leaf in (before, last):
        assert Commitment.from_bytes(leaf).to_bytes() == leaf
    assert Commitment.from_bytes(last).previous == leaf_hash(before).hex()
    assert [entries[3], entries[4], entries[5]] == [before, sample("commitment.md", "abort"), last]
    assert [(item.index, item.leaf) for item in receipt.leaves] == [(3, before), (5, last)]


def test_the_written_bytes_of_the_digests_are_what_the_leaf_holds(receipt: Receipt) -> None:
    leaf = Commitment.from_bytes(sample("commitment.md", "leaf"))
    context = receipt.prompt + receipt.tokens
    made = {
        "request": request_digest(receipt.salt, receipt.prompt),
        "tokens": tokens_digest(receipt.salt, leaf.start, context[leaf.start : leaf.end]),
        "text": text_digest(receipt.salt, receipt.text),
    }
    shown = json.loads(sample("commitment.md", "digests"))
    assert shown.keys() == made.keys()
    for kind, digest in made.items():
        written = bytes.fromhex(shown[kind]["bytes"])
        assert sha256(written).hexdigest() == shown[kind]["sha256"] == digest == getattr(leaf, kind)
    assert receipt.salt.hex() in (FOLDER / "commitment.md").read_text(encoding="utf-8")


def test_the_receipt_is_verified_by_the_policy(policy: Policy, log: LogReader, receipt: Receipt) -> None:
    data = sample("receipt.md", "receipt")
    verified = verify_receipt(data, policy, now=NOW)
    assert (verified.prompt_len, verified.num_tokens, verified.num_leaves) == (10, 8, 2)
    assert verified.anchor is not None and receipt.anchor == sample("anchor.md", "envelope")
    assert verified.witnesses == ("witness.example/north",)
    both = replace(policy, minimum_witnesses=2)
    assert refused(lambda: verify_receipt(data, both, now=NOW)) == 8
    registry = Registry.replay(log.entries(), policy)
    assert refused(lambda: verify_receipt(data, policy, now=NOW, registry=registry)) == 7


def test_the_log_goes_on_from_the_checkpoint_of_the_receipt(
    policy: Policy, log: LogReader, receipt: Receipt
) -> None:
    early, late = (
        Checkpoint.from_text(verify_note(receipt.checkpoint.encode(), [policy.log_key])),
        log.checkpoint(),
    )
    assert (early.tree_size, late.tree_size) == (6, 7)
    proof = log.consistency_proof(early.tree_size)
    verify_consistency(early.tree_size, late.tree_size, proof, early.root_hash, late.root_hash)


def test_the_proof_is_verified_by_both_policies(policy: Policy, entries: list[bytes]) -> None:
    data = BLOCKS["proof.md"]["proof"].encode()
    trust = TrustPolicy.from_bytes(BLOCKS["witness.md"]["trust"].encode())
    assert LogProof.from_bytes(data).to_bytes() == data
    for trusted in (policy, trust):
        verified = verify_log_proof(data, trusted, entries[4])
        assert (verified.index, verified.checkpoint.tree_size) == (4, 7)
        assert refused(lambda t=trusted: verify_log_proof(data, t, entries[3])) == 4
    both = replace(trust, groups=(replace(trust.groups[0], threshold=2),))
    assert refused(lambda: verify_log_proof(data, both, entries[4])) == 3


def test_the_status_proofs_hold_under_the_root_that_the_page_shows() -> None:
    shown = json.loads(sample("status.md", "tree"))
    count, root, (one, two, three) = shown["count"], bytes.fromhex(shown["root"]), shown["digests"]
    absent, present = sample("status.md", "absence"), sample("status.md", "presence")
    assert AbsenceProof.from_bytes(absent).to_bytes() == absent
    assert PresenceProof.from_bytes(present).to_bytes() == present
    verify_absent(bytes.fromhex(shown["absent"]), AbsenceProof.from_bytes(absent), root, count)
    verify_present(bytes.fromhex(two), PresenceProof.from_bytes(present), root, count)
    leaves = [sha256(b"\0" + bytes.fromhex(value)).digest() for value in (one, two, three)]
    tree = sha256(b"\1" + sha256(b"\1" + leaves[0] + leaves[1]).digest() + leaves[2]).digest()
    assert tree.hex() == json.loads(absent)["tree"] == json.loads(present)["tree"]
    assert sha256(b"\2" + struct.pack(">Q", count) + tree).digest() == root
    assert (
        refused(lambda: verify_absent(bytes.fromhex(two), AbsenceProof.from_bytes(absent), root, count)) == 3
    )


def test_the_witness_answers_the_request_with_the_line_of_the_checkpoint(
    policy: Policy, tmp_path: Path
) -> None:
    """By a witness with the sample's key that saw the six entries of the receipt's checkpoint before."""
    shown = BLOCKS["witness.md"]
    request = AddCheckpoint.from_bytes(shown["request"].encode())
    assert request.to_bytes().decode() == shown["request"] and request.old_size == 6
    key = VerifierKey.parse(policy.witnesses[0], COSIGNATURES)
    note = BLOCKS["log.md"]["checkpoint"]
    (found,) = verify_signatures(note.encode(), [key]).signatures
    assert found.line == shown["answer"] and note.endswith(shown["answer"])
    text, _, _ = note.rpartition("\n\n")
    assert shown["message"] == f"cosignature/v1\ntime {found.timestamp}\n{text}\n"
    state = WitnessState(tmp_path / "north.db", new=True)
    witness = Witness([GENERATOR.NORTH], [policy.log_key], state, GENERATOR.WITNESSED.timestamp)
    early = Receipt.from_bytes(sample("receipt.md", "receipt")).checkpoint.encode()
    with pytest.raises(RefusalError, match="0 entries"):
        witness.add_checkpoint(request.to_bytes())
    witness.add_checkpoint(AddCheckpoint(0, (), early).to_bytes())
    assert witness.add_checkpoint(request.to_bytes()).decode() == shown["answer"]
    state.close()


def test_the_trust_policy_round_trips(policy: Policy) -> None:
    trust = TrustPolicy.from_bytes(BLOCKS["witness.md"]["trust"].encode())
    assert trust.to_bytes().decode() == BLOCKS["witness.md"]["trust"]
    assert trust.log_keys == policy.log_keys and trust.witness_keys == policy.witness_keys


def test_the_fieldprint_file_has_the_root_that_the_anchor_signs(artifact: AnchorArtifact) -> None:
    """Read as the page says, without safetensors, and hashed by the slow twin."""
    (record,) = artifact.fieldprints
    data = bytes.fromhex(BLOCKS["fieldprint.md"]["file"])
    (size,) = struct.unpack("<Q", data[:8])
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    assert header == json.loads(sample("fieldprint.md", "header")) and size % 8 == 0
    layers, parts, tokens, heads, dim = header["codes"]["shape"]
    assert (layers, parts, tokens, heads, dim) == (
        record.num_layers,
        2,
        record.num_tokens,
        record.num_kv_heads,
        record.head_dim,
    )
    assert header["exponents"]["shape"] == [layers, parts, heads, dim]
    codes, exponents = (tensors[slice(*header[name]["data_offsets"])] for name in ("codes", "exponents"))
    assert len(codes) + len(exponents) == len(tensors) and 0x80 not in codes
    assert all(-24 <= exponent <= 9 for exponent in struct.unpack(f"{len(exponents)}b", exponents))
    shown = json.loads(sample("fieldprint.md", "pages"))
    row, digests = heads * dim, []
    for layer in range(layers):
        for part in range(parts):
            place = layer * parts + part
            for page, start in enumerate(range(0, tokens, record.page_size)):
                stop = min(start + record.page_size, tokens)
                written = struct.pack("<6I", layer, part, page, stop - start, heads, dim)
                written += exponents[place * row : (place + 1) * row]
                written += codes[(place * tokens + start) * row : (place * tokens + stop) * row]
                digest = naive_digest(written)
                expected = {"layer": layer, "part": part, "page": page}
                assert shown[len(digests)] == expected | {"bytes": written.hex(), "digest": digest.hex()}
                digests.append(digest)
    assert len(shown) == len(digests)
    root = sample("fieldprint.md", "root").decode()
    assert naive_root(digests).hex() == root == record.root == header["__metadata__"]["root"]
    ids = json.loads(sample("fieldprint.md", "token-ids"))
    assert len(ids) == tokens
    assert sha256(struct.pack(f"<{tokens}i", *ids)).hexdigest() == record.token_ids_sha256


def names(value: object, skip: tuple[str, ...]) -> Iterator[str]:
    """The names of all fields in a JSON value; not those inside the free objects."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            if name not in skip:
                yield from names(inner, skip)
    elif isinstance(value, list):
        for inner in value:
            yield from names(inner, skip)


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        ("anchor.md", ("envelope", "payload", "revocation", "revocation-payload")),
        ("commitment.md", ("leaf", "abort")),
        ("receipt.md", ("receipt",)),
        ("fieldprint.md", ("header",)),
        ("status.md", ("absence", "presence")),
        ("log.md", ("entries",)),
        (
            "events.md",
            ("entry", "registration", "supersession", "endorsement", "override", "lift", "status-root"),
        ),
    ],
)
def test_every_field_of_a_sample_is_in_a_table_of_its_page(page: str, blocks: tuple[str, ...]) -> None:
    text = (FOLDER / page).read_text(encoding="utf-8")
    first = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    documented = {part for name in re.findall(r"`([^`]+)`", first) for part in re.split(r"\.|\[\]", name)}
    documented |= {"dtype", "shape", "data_offsets"}  # safetensors' own
    if page == "log.md":  # leaves and abort entries have a page of their own
        lines = [
            x
            for x in BLOCKS[page]["entries"].splitlines()
            if '"promote"' in x or '"revoke"' in x or '"sign"' in x
        ]
    else:
        lines = [BLOCKS[page][name] for name in blocks]
    found = {name for line in lines for name in names(json.loads(line), ("sampler", "attention"))}
    assert found and found <= documented
    if page == "commitment.md":
        assert {field.name for field in fields(Commitment)} <= documented


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_the_lines_that_a_page_refers_to_exist(page: str) -> None:
    def count(name: str) -> int:
        numbers = [int(n) for n in NUMBERED.findall((FOLDER / name).read_text(encoding="utf-8"))]
        assert numbers == list(range(1, len(numbers) + 1)) and numbers
        return len(numbers)

    count(page)
    for first, last, other in REFERENCE.findall((FOLDER / page).read_text(encoding="utf-8")):
        assert 1 <= int(first) <= int(last or first) <= count(other)
