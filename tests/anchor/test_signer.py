"""Keys behind one interface: encrypted files, signers that lie, signatures added later, references to nowhere."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)

from fieldprint.anchor import (
    AnchorArtifact,
    Envelope,
    KeySigner,
    Signer,
    cosign_envelope,
    key_id,
    load_cosigner_key,
    load_private_key,
    load_public_key,
    new_key,
    open_signer,
    sign_anchor,
    sign_envelope,
    sign_revocation,
    valid_signers,
)
from fieldprint.anchor.keys import read_secret
from fieldprint.errors import FieldprintError, FormatError

NOW = datetime(2026, 11, 24, tzinfo=UTC)
ARTIFACT = AnchorArtifact("me", "identity", "Be kind.", NOW, NOW + timedelta(days=1))
OWNER, REVIEWER, THIRD = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2, 3))
PASSPHRASE = b"correct horse battery"
TRUSTED = {key_id(key.public_key()): key.public_key() for key in (OWNER, REVIEWER, THIRD)}


def answering(secret: bytes) -> Any:
    asked: list[str] = []

    def ask(what: str) -> bytes:
        asked.append(what)
        return secret

    ask.asked = asked  # type: ignore[attr-defined]
    return ask


def encrypted(path: Path, key: Any = OWNER, passphrase: bytes = PASSPHRASE) -> Path:
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    )
    path.chmod(0o600)
    return path


def test_a_signer_and_its_private_key_give_the_same_bytes() -> None:
    for sign in (
        lambda key: sign_anchor(ARTIFACT, [key]),
        lambda key: sign_revocation(ARTIFACT.digest, "lost", NOW, [key]),
    ):
        assert sign(KeySigner(OWNER)) == sign(OWNER)
    assert "private_key" not in repr(KeySigner(OWNER))


def test_an_encrypted_key_is_read_with_its_passphrase_and_no_other(tmp_path: Path) -> None:
    private, public = new_key(tmp_path, "owner", passphrase=PASSPHRASE)
    assert private.stat().st_mode & 0o777 == 0o600 and b"ENCRYPTED" in private.read_bytes()
    right = answering(PASSPHRASE)
    signer = open_signer(str(private), passphrase=right)
    assert signer.key_id == key_id(load_public_key(public)) and right.asked == [f"passphrase of {private}"]
    for wrong in (b"correct horse batterz", PASSPHRASE + b"\n", b"x" * 1023):
        with pytest.raises(FormatError, match="cannot be decrypted"):
            open_signer(str(private), passphrase=answering(wrong))
    for impossible in (b"", b"x" * 1024):
        with pytest.raises(FormatError, match="1 to 1023 bytes"):
            open_signer(str(private), passphrase=answering(impossible))
    for load in (load_private_key, load_cosigner_key, lambda path: open_signer(str(path))):
        with pytest.raises(FormatError, match="is encrypted"):
            load(private)


def test_a_plain_key_asks_for_nothing(tmp_path: Path) -> None:
    ask = answering(b"never asked")
    private, _ = new_key(tmp_path, "plain")
    assert open_signer(str(private), passphrase=ask).sign(b"m") and ask.asked == []


def test_a_readable_file_is_refused_before_its_passphrase_is_asked_for(tmp_path: Path) -> None:
    ask = answering(PASSPHRASE)
    path = encrypted(tmp_path / "a.key")
    path.chmod(0o644)
    with pytest.raises(FormatError, match="chmod 600"):
        load_private_key(path, ask)
    assert ask.asked == []


def test_an_encrypted_key_of_another_kind_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    other = encrypted(tmp_path / "x.key", X25519PrivateKey.generate())
    with pytest.raises(FormatError, match="no Ed25519 key"):
        load_private_key(other, answering(PASSPHRASE))
    whole = encrypted(tmp_path / "a.key").read_bytes()
    for cut in (whole[:-60], whole.replace(b"ENCRYPTED ", b""), whole[:60] + b"AAAA" + whole[64:]):
        (tmp_path / "a.key").write_bytes(cut)
        with pytest.raises(FormatError):
            load_private_key(tmp_path / "a.key", answering(PASSPHRASE))


@pytest.mark.parametrize("passphrase", [b"", b"elevenchars", b"x" * 1024])
def test_a_key_is_not_encrypted_with_a_bad_passphrase(tmp_path: Path, passphrase: bytes) -> None:
    with pytest.raises(ValueError, match="12 to 1023 bytes"):
        new_key(tmp_path, "owner", passphrase=passphrase)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to write other encrypted forms")
@pytest.mark.parametrize(
    "how", [["-scrypt"], ["-v2", "aes-256-cbc", "-iter", "600000"]], ids=["scrypt", "pbkdf2"]
)
def test_stronger_forms_that_openssl_writes_are_read(tmp_path: Path, how: list[str]) -> None:
    encrypted(tmp_path / "a.key")
    secret = PASSPHRASE.decode()
    command = ["openssl", "pkcs8", "-topk8", *how, "-in", "a.key", "-out", "b.key"]
    command += ["-passin", f"pass:{secret}", "-passout", f"pass:{secret}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "b.key").chmod(0o600)
    made = load_private_key(tmp_path / "b.key", answering(PASSPHRASE))
    assert made.private_bytes_raw() == OWNER.private_bytes_raw()


@pytest.mark.parametrize(
    ("content", "secret"),
    [(b"secret", b"secret"), (b"secret\n", b"secret"), (b"secret\r\nmore\n", b"secret"), (b" s \n", b" s "),
     (b"x" * 1023 + b"\n", b"x" * 1023), (b"x" * 1024, None), (b"x" * 1024 + b"\n", None), (b"", None), (b"\nx", None)],
)  # fmt: skip
def test_a_secret_is_the_first_line(tmp_path: Path, content: bytes, secret: bytes | None) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    if secret is not None:
        assert read_secret(path, "PIN") == secret
    else:
        with pytest.raises(FormatError, match="first line") as refused:
            read_secret(path, "PIN")
        assert "xxxx" not in str(refused.value)


def test_a_secrets_file_must_be_private_and_there(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_secret(path, "passphrase")
    path.write_text("secret")
    path.chmod(0o640)
    with pytest.raises(FormatError, match="chmod 600"):
        read_secret(path, "passphrase")
    with pytest.raises(FormatError, match="cannot be read: Is a directory"):
        read_secret(tmp_path, "passphrase")


def test_a_secret_comes_through_a_pipe() -> None:
    end, start = os.pipe()
    os.write(start, b"through a pipe\n")
    os.close(start)
    try:
        assert read_secret(Path(f"/dev/fd/{end}"), "passphrase") == b"through a pipe"
    finally:
        os.close(end)


class Altered:
    """A signer that lies in one way."""

    def __init__(self, **changed: Any) -> None:
        honest = KeySigner(OWNER)
        self.key_id: str = changed.get("key_id", honest.key_id)
        self.public_key: bytes = changed.get("public_key", honest.public_key)
        self._signature: bytes | None = changed.get("signature")

    def sign(self, message: bytes) -> bytes:
        return OWNER.sign(message) if self._signature is None else self._signature


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"key_id": "0" * 64}, "another public key"),
        ({"public_key": KeySigner(REVIEWER).public_key}, "another public key"),
        (
            {"public_key": KeySigner(REVIEWER).public_key, "key_id": KeySigner(REVIEWER).key_id},
            "does not verify",
        ),
        ({"public_key": b"short"}, "no Ed25519 public key"),
        ({"signature": b""}, "does not verify"),
        ({"signature": OWNER.sign(b"another message")}, "does not verify"),
        ({"signature": b"\x30\x44" + bytes(68)}, "does not verify"),
    ],
)
def test_what_a_signer_answers_is_verified(changed: dict[str, Any], why: str) -> None:
    assert sign_envelope("t", b"payload", [Altered()]) == sign_envelope("t", b"payload", [OWNER])
    with pytest.raises(FieldprintError, match=why):
        sign_envelope("t", b"payload", [Altered(**changed)])


def test_nobody_signs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        sign_anchor(ARTIFACT, [])


def test_signatures_are_added_and_nothing_else_changes() -> None:
    first = Envelope.from_bytes(sign_anchor(ARTIFACT, [OWNER]))
    second = cosign_envelope(first, [REVIEWER, KeySigner(THIRD)])
    assert second.signatures[:1] == first.signatures and second.payload == first.payload
    assert valid_signers(second, TRUSTED) == TRUSTED.keys()
    assert second.to_bytes() == sign_anchor(ARTIFACT, [OWNER, REVIEWER, THIRD])
    assert Envelope.from_bytes(second.to_bytes()) == second


@pytest.mark.parametrize(
    "again", [[OWNER], [KeySigner(OWNER)], [REVIEWER, OWNER], [REVIEWER, KeySigner(REVIEWER)]]
)
def test_the_same_key_does_not_sign_twice(again: list[Any]) -> None:
    envelope = Envelope.from_bytes(sign_anchor(ARTIFACT, [OWNER]))
    with pytest.raises(FieldprintError, match="would sign twice"):
        cosign_envelope(envelope, again)


def test_a_false_signature_under_a_key_is_not_replaced() -> None:
    """Who put it there must be found out; the anchor is signed anew."""
    envelope = Envelope.from_bytes(sign_anchor(ARTIFACT, [OWNER]))
    false = replace(envelope, signatures=((KeySigner(REVIEWER).key_id, bytes(64)), *envelope.signatures))
    with pytest.raises(FieldprintError, match="would sign twice"):
        cosign_envelope(false, [REVIEWER])


def test_an_envelope_has_at_most_32_signatures() -> None:
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(33)]
    full = Envelope.from_bytes(sign_anchor(ARTIFACT, keys[:32]))
    with pytest.raises(FieldprintError, match="at most 32"):
        cosign_envelope(full, keys[32:])


@pytest.mark.parametrize(
    ("reference", "package", "extra"),
    [("keyring:fieldprint/owner", "keyring", "keyring"), ("pkcs11:token=t;object=o", "pkcs11", "pkcs11")],
)
def test_a_missing_package_is_named_with_its_extra(
    reference: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FieldprintError, match=re.escape(f"pip install 'fieldprint[{extra}]'")):
        open_signer(reference)


@pytest.mark.parametrize(
    "reference", ["keyring:", "keyring:owner", "keyring:/owner", "keyring:fieldprint/", "keyring:a/b\n"]
)
def test_a_malformed_keyring_reference_is_refused(reference: str) -> None:
    with pytest.raises(FormatError, match="SERVICE/NAME"):
        open_signer(reference)


def test_a_reference_that_is_no_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="fieldprint keys new"):
        open_signer(str(tmp_path / "nothing.key"))


class KmsServer(BaseHTTPRequestHandler):
    """The two calls of AWS KMS that signing needs, over its own protocol; the key is in this process alone."""

    def do_POST(self) -> None:
        call = self.headers["X-Amz-Target"]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["KeyId"] == "alias/owner" and self.headers["Authorization"].startswith(
            "AWS4-HMAC-SHA256"
        )
        if call == "TrentService.GetPublicKey":
            der = OWNER.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            answer = {"PublicKey": base64.b64encode(der).decode(), "KeySpec": "ECC_NIST_EDWARDS25519"}
        else:
            assert (call, asked["MessageType"], asked["SigningAlgorithm"]) == (
                "TrentService.Sign", "RAW", "ED25519_SHA_512",
            )  # fmt: skip
            signature = OWNER.sign(base64.b64decode(asked["Message"]))
            answer = {"Signature": base64.b64encode(signature).decode()}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def kms_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), KmsServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_key_management_example_of_the_page_signs(kms_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of docs/keys.md, with AWS's own client, against a server that speaks its protocol."""
    boto3 = pytest.importorskip("boto3")
    text = (Path(__file__).parents[2] / "docs/keys.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": kms_url,
        "AWS_DEFAULT_REGION": "eu-north-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    space = {"sha256": sha256, "boto3": boto3, "sign_anchor": sign_anchor, "artifact": ARTIFACT}
    exec(compile(source, "docs/keys.md", "exec"), space)
    assert space["signed"] == sign_anchor(ARTIFACT, [OWNER])
    signer: Signer = space["KmsSigner"](boto3.client("kms"), "alias/owner")  # type: ignore[operator]
    assert signer.key_id == KeySigner(OWNER).key_id
