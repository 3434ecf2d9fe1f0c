"""Sigstore bundles: made by services of the test's own, verified by sigstore's code, and refused when anything differs."""

import base64
import copy
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from fieldprint.anchor import AnchorArtifact, Envelope, KindRule, Policy, Registration, sign_envelope
from fieldprint.anchor.keyless import MAX_BUNDLE_SIZE, Keyless, verify_bundle
from fieldprint.anchor.sign import PAYLOAD_TYPE
from fieldprint.errors import FieldprintError, FormatError, VerificationError
from fieldprint.note import NoteSigner
from fieldprint.registry import Registry, registration_entry
from fieldprint.verify import verify_anchor
from tests.anchor.sigstore_world import IDENTITY, ISSUER, SIGNED, World
from tests.registry.world import LOG, OWNER

NOW = datetime(2026, 11, 24, tzinfo=UTC)
PAYLOAD = AnchorArtifact("me", "identity", "Be kind.", NOW, NOW + timedelta(days=1)).to_bytes()
WORLD = World()
ROOT = WORLD.trusted_root()
GOOD = WORLD.bundle(PAYLOAD)


@pytest.fixture(autouse=True)
def needs_sigstore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, and no network: a connection is an error."""
    pytest.importorskip("sigstore.verify", reason="the extra `sigstore` is not installed")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def check(bundle: Any, payload: bytes = PAYLOAD, **other: Any) -> int | None:
    """None if the bundle verifies, else the number of what failed."""
    expected = {"identity": IDENTITY, "issuer": ISSUER, "trusted_root": ROOT} | other
    data = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    try:
        verify_bundle(data, payload, **expected)
    except VerificationError as error:
        return error.check
    return None


def test_a_bundle_of_the_trusted_services_verifies_offline() -> None:
    assert check(GOOD) is None


def test_a_workflow_is_an_identity() -> None:
    workflow = "https://github.com/example/agent/.github/workflows/sign.yml@refs/heads/main"
    bundle = WORLD.bundle(PAYLOAD, identity=workflow)
    assert check(bundle, identity=workflow) is None
    assert check(bundle, identity=workflow.replace("main", "mine")) == 2


@pytest.mark.parametrize(
    ("other", "number"),
    [
        ({"identity": "owner@example.com"}, 2),
        ({"identity": "Owner@example.org"}, 2),
        ({"identity": "owner@example.org "}, 2),
        ({"issuer": "https://accounts.example.com"}, 2),
        ({"issuer": ISSUER + "/"}, 2),
        ({"payload": PAYLOAD.replace(b"kind.", b"mean.")}, 3),
        ({"payload": b""}, 3),
        ({"trusted_root": b"{}"}, 1),
        ({"trusted_root": b""}, 1),
        ({"trusted_root": b"[" * 9999}, 1),
        ({"trusted_root": b" " * (1 << 20) + ROOT}, 1),
    ],
)
def test_who_and_what_must_be_the_ones_that_are_asked_for(other: dict[str, Any], number: int) -> None:
    assert check(GOOD, **other) == number


@pytest.mark.parametrize("name", ["identity", "issuer"])
def test_nobody_in_particular_is_not_an_identity(name: str) -> None:
    with pytest.raises(ValueError, match="must be given"):
        check(GOOD, **{name: ""})


@pytest.mark.parametrize("service", ["authority", "promises", "log"])
def test_a_service_with_another_key_is_not_believed(service: str) -> None:
    assert check(WORLD.with_other(service).bundle(PAYLOAD)) == 2
    assert check(GOOD, trusted_root=WORLD.with_other(service).trusted_root()) == 2


@pytest.mark.parametrize(
    "how",
    [
        {"promised": False},
        {"usage": ExtendedKeyUsageOID.SERVER_AUTH},
        {"start": SIGNED + timedelta(minutes=1)},
        {"start": SIGNED - timedelta(minutes=11)},
        {"time": SIGNED + timedelta(minutes=11)},
        {"time": SIGNED - timedelta(minutes=1)},
        {"time": SIGNED + timedelta(days=400)},
        {"issuer": ""},
    ],
    ids=[
        "no promise",
        "for servers",
        "too early",
        "too late",
        "logged late",
        "logged early",
        "a year on",
        "no issuer",
    ],
)
def test_a_certificate_that_does_not_fit_is_refused(how: dict[str, Any]) -> None:
    assert check(WORLD.bundle(PAYLOAD, **how)) == 2


def test_another_payload_type_is_refused() -> None:
    assert check(WORLD.bundle(PAYLOAD, kind="text/plain")) == 3


def flipped(text: str) -> str:
    """Base64 of the same bytes with one bit changed, in the middle."""
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


def entry(bundle: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = bundle["verificationMaterial"]["tlogEntries"][0]
    return found


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "payload": lambda b: b["dsseEnvelope"].update(payload=flipped(b["dsseEnvelope"]["payload"])),
    "payload type": lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
    "signature": lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=flipped(b["dsseEnvelope"]["signatures"][0]["sig"])),
    "signature twice": lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]),
    "no signature": lambda b: b["dsseEnvelope"].update(signatures=[]),
    "no envelope": lambda b: b.pop("dsseEnvelope"),
    "certificate": lambda b: b["verificationMaterial"]["certificate"].update(rawBytes=flipped(b["verificationMaterial"]["certificate"]["rawBytes"])),
    "no certificate": lambda b: b["verificationMaterial"].pop("certificate"),
    "certificate of another bundle": lambda b: b["verificationMaterial"].update(certificate=WORLD.bundle(PAYLOAD)["verificationMaterial"]["certificate"]),
    "no entry": lambda b: b["verificationMaterial"].update(tlogEntries=[]),
    "entry of another bundle": lambda b: b["verificationMaterial"].update(tlogEntries=WORLD.bundle(PAYLOAD)["verificationMaterial"]["tlogEntries"]),
    "entry twice": lambda b: b["verificationMaterial"]["tlogEntries"].append(entry(b)),
    "no promise": lambda b: entry(b).pop("inclusionPromise"),
    "promise": lambda b: entry(b)["inclusionPromise"].update(signedEntryTimestamp=flipped(entry(b)["inclusionPromise"]["signedEntryTimestamp"])),
    "time": lambda b: entry(b).update(integratedTime=str(int(entry(b)["integratedTime"]) + 1)),
    "huge time": lambda b: entry(b).update(integratedTime=str(2**62)),
    "no time": lambda b: entry(b).pop("integratedTime"),
    "no proof": lambda b: entry(b).pop("inclusionProof"),
    "proof's index": lambda b: entry(b)["inclusionProof"].update(logIndex="2"),
    "proof's hash": lambda b: entry(b)["inclusionProof"]["hashes"].__setitem__(0, flipped(entry(b)["inclusionProof"]["hashes"][0])),
    "proof's root": lambda b: entry(b)["inclusionProof"].update(rootHash=flipped(entry(b)["inclusionProof"]["rootHash"])),
    "checkpoint": lambda b: entry(b)["inclusionProof"]["checkpoint"].update(envelope=entry(b)["inclusionProof"]["checkpoint"]["envelope"].replace("\n5\n", "\n6\n")),
    "empty checkpoint": lambda b: entry(b)["inclusionProof"]["checkpoint"].update(envelope=""),
    "body": lambda b: entry(b).update(canonicalizedBody=flipped(entry(b)["canonicalizedBody"])),
    "kind": lambda b: entry(b)["kindVersion"].update(kind="hashedrekord"),
    "version": lambda b: entry(b)["kindVersion"].update(version="0.0.9"),
    "media type": lambda b: b.update(mediaType="application/json"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_of_the_bundle_is_refused(name: str) -> None:
    changed = copy.deepcopy(GOOD)
    CHANGES[name](changed)
    assert changed != GOOD and check(changed) in (1, 2)
    assert check(GOOD) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"null", b"[" * 99999, b"\xff\xfe", b"{" + b'"a":' * 3000, b" " * (MAX_BUNDLE_SIZE + 1)],
    ids=["nothing", "empty", "null", "nested", "not UTF-8", "cut", "too large"],
)
def test_bytes_that_are_no_bundle_are_refused(data: bytes) -> None:
    assert check(data) == 1


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(FieldprintError, match=r"pip install 'fieldprint\[sigstore\]'"):
        verify_bundle(b"{}", PAYLOAD, identity=IDENTITY, issuer=ISSUER, trusted_root=ROOT)


RELEASE = Keyless(IDENTITY, ISSUER, ROOT)
POLICY = Policy(
    {"owner": OWNER.public_key().public_bytes_raw()},
    {"identity": KindRule(("owner", "release"), 2)},
    ("owner",),
    1,
    str(NoteSigner("test/log", LOG).verifier_key),
    keyless={"release": RELEASE},
)


def signed_by(*signatures: tuple[str, bytes], payload: bytes = PAYLOAD) -> bytes:
    own = sign_envelope(PAYLOAD_TYPE, payload, [OWNER]).signatures
    return Envelope(PAYLOAD_TYPE, payload, own + signatures).to_bytes()


def verified(signed: bytes, policy: Policy = POLICY) -> tuple[str, ...] | int:
    try:
        return verify_anchor(signed, policy, now=NOW, registry=None).signers
    except VerificationError as error:
        return error.check


def test_a_bundle_counts_as_the_signature_of_its_identity() -> None:
    bundle = json.dumps(GOOD).encode()
    assert verified(signed_by((RELEASE.id, bundle))) == ("owner", "release")
    assert Policy.from_bytes(POLICY.to_bytes()) == POLICY


def test_a_bundle_of_another_text_or_under_another_id_or_twice_does_not_count() -> None:
    bundle = json.dumps(GOOD).encode()
    other = AnchorArtifact("me", "identity", "Be cruel.", NOW, NOW + timedelta(days=1)).to_bytes()
    assert verified(signed_by((RELEASE.id, bundle), payload=other)) == 4
    assert verified(signed_by(("ab" * 32, bundle))) == 4
    assert verified(signed_by()) == 4
    assert verified(signed_by((RELEASE.id, b"{}"))) == 4
    stranger = replace(POLICY, keyless={"release": replace(RELEASE, identity="mallory@example.org")})
    assert verified(signed_by((stranger.keyless["release"].id, bundle)), stranger) == 4


def test_a_registration_may_be_signed_by_a_bundle() -> None:
    artifact = AnchorArtifact.from_bytes(PAYLOAD)
    registration = Registration.of(artifact).to_bytes()
    bundle = json.dumps(WORLD.bundle(registration)).encode()
    entry = registration_entry(signed_by((RELEASE.id, bundle), payload=registration))
    registry = Registry.replay([entry], POLICY)
    assert list(registry.anchors) == [artifact.digest]


@pytest.mark.parametrize(
    "keyless",
    [
        {"owner": RELEASE},
        {"release": replace(RELEASE, identity="")},
        {"release": replace(RELEASE, issuer="")},
        {"Release!": RELEASE},
        {"release": RELEASE, "again": RELEASE},
    ],
)
def test_a_policy_whose_identities_are_none_is_refused(keyless: dict[str, Keyless]) -> None:
    with pytest.raises(FormatError):
        replace(POLICY, keyless=keyless)
