"""Keys, artifacts and policies: round trips, and what is refused."""

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.anchor import (
    KINDS,
    AnchorArtifact,
    Envelope,
    FieldprintRecord,
    KindRule,
    Policy,
    SignerRule,
    StatusRule,
    load_cosigner_key,
    load_private_key,
    load_public_key,
    new_key,
    sign_anchor,
)
from fieldprint.anchor.artifact import BLOCK, FORMS
from fieldprint.anchor.dsse import pae
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.note import COSIGNATURE_MLDSA44, Cosigner, NoteSigner
from tests.witnessing import EAST, NORTH, SOUTH, latticed

NOW = datetime(2026, 11, 24, tzinfo=UTC)
names = st.from_regex(r"[a-z0-9._-]{1,12}", fullmatch=True)
texts = st.text(st.characters(categories=["L", "N", "P", "Zs"], max_codepoint=0x17F), min_size=1, max_size=60)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
forms = st.sampled_from(FORMS)


def artifact(
    text: str = "Be kind.", name: str = "me", kind: str = "identity", **fields: tuple[str, ...]
) -> AnchorArtifact:
    return AnchorArtifact(name, kind, text, NOW, NOW + timedelta(days=1), **fields)  # type: ignore[arg-type]


@settings(deadline=None)
@given(texts, names, st.sampled_from(KINDS), st.sets(digests, max_size=3), st.sets(names, max_size=3))
def test_an_artifact_round_trips(text: str, name: str, kind: str, parents: set[str], taint: set[str]) -> None:
    import unicodedata

    made = artifact(
        unicodedata.normalize("NFC", text),
        name,
        kind,
        parents=tuple(sorted(parents)),
        taint=tuple(sorted(taint)),
    )
    data = made.to_bytes()
    assert AnchorArtifact.from_bytes(data) == made
    assert AnchorArtifact.from_bytes(data).to_bytes() == data


def record(model: str, form: str, num_tokens: int = BLOCK) -> FieldprintRecord:
    return FieldprintRecord(model, form, num_tokens, "aa" * 32, 2, 1, 8, 16, "int8-pow2-v1", "bb" * 32)


@given(forms, st.integers(1, 512))
def test_a_fieldprint_before_position_0_fills_whole_blocks(form: str, num_tokens: int) -> None:
    if form.endswith("-before") and num_tokens % 32:
        with pytest.raises(FormatError, match="blocks of 32 tokens"):
            record("00" * 32, form, num_tokens)
    else:
        assert record("00" * 32, form, num_tokens).before == (form in ("chat-system-before", "raw-before"))


@pytest.mark.parametrize("form", ["before", "-before", "raw-before-before", "raw-Before", "chat-user-before"])
def test_another_form_is_refused(form: str) -> None:
    with pytest.raises(FormatError, match="form or quantizer"):
        record("00" * 32, form)


@given(st.lists(st.tuples(st.sampled_from(["00" * 32, "11" * 32]), forms), max_size=5))
def test_an_anchor_has_one_fieldprint_for_a_model_and_placement(chosen: list[tuple[str, str]]) -> None:
    """Two forms of one placement exclude each other; what is there is found, and comes back from the bytes."""
    records = tuple(record(model, form) for model, form in chosen)
    places = [(model, form.endswith("-before")) for model, form in chosen]
    if len(set(places)) < len(places):
        with pytest.raises(FormatError, match="at most one fieldprint"):
            replace(artifact(), fieldprints=records)
        return
    made = AnchorArtifact.from_bytes(replace(artifact(), fieldprints=records).to_bytes())
    assert made.fieldprints == records
    for model in ("00" * 32, "11" * 32):
        for before in (False, True):
            found = made.record_for(model, before=before)
            place = (model, before)
            assert found == (records[places.index(place)] if place in places else None)
        assert made.record_for(model) == made.record_for(model, before=False)
    envelope = Envelope.from_bytes(sign_anchor(made, [Ed25519PrivateKey.generate()]))
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope


@pytest.mark.parametrize(
    "text", ["", "e\u0301", "a\x00b", "zero\u200bwidth", "right\u202eleft", "\ud800", "x" * 65537],
    ids=["empty", "not NFC", "control", "zero width", "bidi", "surrogate", "too long"],
)  # fmt: skip
def test_deceptive_texts_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        artifact(text)


@pytest.mark.parametrize("name", ["", "A", "a b", "ä", "x" * 65, "a/b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        artifact(name=name)


def test_pae_is_the_one_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    private, public = new_key(tmp_path, "owner")
    assert private.stat().st_mode & 0o777 == 0o600
    assert load_private_key(private).public_key() == load_public_key(public)
    with pytest.raises(FieldprintError, match="not overwritten"):
        new_key(tmp_path, "owner")
    private.chmod(0o640)
    with pytest.raises(FormatError, match="chmod 600"):
        load_private_key(private)
    public.chmod(0o600)
    with pytest.raises(FormatError, match="no private key"):
        load_private_key(public)


def policy() -> Policy:
    owner, log = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    rule = KindRule(("owner",), 1, 512, 30, ("untrusted",))
    raw = owner.public_key().public_bytes_raw()
    return Policy(
        {"owner": raw}, {"identity": rule}, ("owner",), 1, str(NoteSigner("a/log", log).verifier_key)
    )


def test_a_policy_round_trips() -> None:
    made = policy()
    assert Policy.from_bytes(made.to_bytes()) == made


def whole_policy() -> Policy:
    """With everything that may be missing."""
    plain, warden, clerk = policy(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    raw = {
        name: key.public_key().public_bytes_raw() for name, key in {"warden": warden, "clerk": clerk}.items()
    }
    rule = KindRule(("owner",), 1, 512, 30, (), ("untrusted",), ("ab" * 32,), "reprefill")
    return replace(
        plain,
        keys={**plain.keys, **raw},
        kinds={**plain.kinds, "observation": rule},
        endorsement={"untrusted": SignerRule(("owner", "clerk"), 2), "a.b": SignerRule(("owner",))},
        override=SignerRule(("warden",)),
        status=StatusRule(("clerk",), 1, 60),
    )


def test_no_names_are_nobody_and_none_is_everybody() -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    log = str(NoteSigner("test/log", Ed25519PrivateKey.generate()).verifier_key)
    policy = Policy({"owner": key}, {}, ("owner",), 1, log)
    assert policy.trusted(()) == {}
    assert [policy.name_of(known) for known in policy.trusted()] == ["owner"]


def test_a_policy_with_every_table_round_trips_and_an_old_one_is_written_as_before() -> None:
    made = whole_policy()
    assert Policy.from_bytes(made.to_bytes()) == made
    for word in (b"adds_taint", b"models", b"on_revoke", b"endorsement", b"override", b"status"):
        assert word in made.to_bytes() and word not in policy().to_bytes()
    assert set(made.signer_rules) == {
        *("kind identity", "kind observation", "revocation"),
        *("endorsement untrusted", "endorsement a.b", "override", "status"),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('on_revoke = "reprefill"', 'on_revoke = "ignore"'),
        ('on_revoke = "reprefill"', "on_revoke = 5"),
        ('models = ["ab', 'models = ["AB'),
        ('adds_taint = ["untrusted"]', 'adds_taint = ["Not a label"]'),
        ('adds_taint = ["untrusted"]', 'adds_labels = ["untrusted"]'),
        ('[endorsement."untrusted"]', '[endorsement."Not a label"]'),
        ('signers = ["warden"]', 'signers = ["owner"]'),
        ('signers = ["warden"]', 'signers = ["nobody"]'),
        ('signers = ["owner", "clerk"]\nthreshold = 2', 'signers = ["owner", "owner"]\nthreshold = 2'),
        ("max_age_seconds = 60", "max_age_seconds = 0"),
        ("max_age_seconds = 60", "max_age = 60"),
        ("max_age_seconds = 60", "max_age_seconds = true"),
    ],
)
def test_a_policy_with_a_table_that_is_not_well_formed_is_refused(old: str, new: str) -> None:
    text = whole_policy().to_bytes().decode()
    assert old in text
    with pytest.raises(FormatError):
        Policy.from_bytes(text.replace(old, new, 1).encode())
    for table in ("endorsement", "override", "status", "kinds"):
        with pytest.raises(FormatError):
            Policy.from_bytes(f"{table} = 5\n{policy().to_bytes().decode()}".encode())


@pytest.mark.parametrize("origin", ['a"b', "a\\b", "\u00e9", "a\\u0041", "[x]", "#"])
def test_a_policy_round_trips_whatever_the_log_is_called(origin: str) -> None:
    made = replace(policy(), log=str(NoteSigner(origin, Ed25519PrivateKey.generate()).verifier_key))
    assert Policy.from_bytes(made.to_bytes()) == made


def test_a_policy_with_witnesses_round_trips_and_counts_names() -> None:
    plain = policy()
    north, lattice = NORTH.verifier_key, latticed(NORTH.name).verifier_key
    made = replace(plain, witnesses=(str(north), str(lattice), str(SOUTH.verifier_key)), minimum_witnesses=2)
    assert Policy.from_bytes(made.to_bytes()) == made and made.to_bytes().startswith(plain.to_bytes())
    assert not made.quorum_met([north, lattice]) and not made.quorum_met([north, EAST.verifier_key])
    assert made.quorum_met([lattice, SOUTH.verifier_key])
    assert made.quorum_text == "2 of witness.example/north, witness.example/south"
    assert plain.quorum_met([]) and plain.log_keys == (plain.log_key,)


def test_a_policy_has_at_most_64_witnesses() -> None:
    keys = [Cosigner("w", Ed25519PrivateKey.generate()).verifier_key for _ in range(65)]
    assert replace(policy(), witnesses=tuple(map(str, keys[:64]))).witness_keys
    with pytest.raises(FormatError, match="more than 64"):
        replace(policy(), witnesses=tuple(map(str, keys)))


def test_a_witness_may_have_a_lattice_key_and_an_anchors_signer_may_not(tmp_path: Path) -> None:
    private, public = new_key(tmp_path, "witness", lattice=True)
    assert private.stat().st_mode & 0o777 == 0o600 and b"PUBLIC KEY" in public.read_bytes()
    assert Cosigner("w", load_cosigner_key(private)).verifier_key.signature_type is COSIGNATURE_MLDSA44
    for load, path in ((load_private_key, private), (load_public_key, public)):
        with pytest.raises(FormatError, match="no Ed25519 key"):
            load(path)
    ordinary, _ = new_key(tmp_path, "ordinary")
    assert isinstance(load_cosigner_key(ordinary), Ed25519PrivateKey)
    private.chmod(0o640)
    with pytest.raises(FormatError, match="chmod 600"):
        load_cosigner_key(private)
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    private.chmod(0o600)
    private.write_bytes(other)
    with pytest.raises(FormatError, match="neither an Ed25519 nor"):
        load_cosigner_key(private)


def test_without_mldsa_lattice_keys_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, _ = new_key(tmp_path, "witness", lattice=True)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    with pytest.raises(FieldprintError, match="no ML-DSA-44"):
        new_key(tmp_path, "another", lattice=True)
    with pytest.raises(FormatError, match="neither an Ed25519 nor"):
        load_cosigner_key(private)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("threshold = 1", "threshold = 2"),
        ('signers = ["owner"]', 'signers = ["nobody"]'),
        ("max_tokens = 512", "max_tokens = 513"),
        ("[kinds.identity]", "[kinds.fancy]"),
        ("[revocation]", "[revocations]"),
        ("max_age_days = 30", "max_age_days = 30\nextra = 1"),
        ("max_age_days = 30", "max_age_days = 1000000000"),
        ("max_age_days = 30", f"max_age_days = {'9' * 5000}"),
        ("threshold = 1", f"threshold = {'[' * 100_000}"),
        ('log = "a/log', 'log = "b/log'),
        ('"owner" = "', '"owner" = "A'),
        ("[keys]", "[keys"),
    ],
)
def test_a_bad_policy_is_refused(old: str, new: str) -> None:
    text = policy().to_bytes().decode()
    assert old in text
    with pytest.raises(FormatError):
        Policy.from_bytes(text.replace(old, new).encode())
