"""Keys in tokens: real ones of SoftHSM, a PKCS#11 library in software (Debian: softhsm2)."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.anchor import AnchorArtifact, Envelope, key_id, open_signer, sign_anchor, valid_signers
from fieldprint.anchor.pkcs11 import MODULE_VARIABLE, TokenUri
from fieldprint.errors import FieldprintError, FormatError
from tests.anchor.test_signer import ARTIFACT, OWNER, answering

PIN = "1234"
LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("pkcs11:token=a;object=b", TokenUri(token="a", object="b")),
        ("pkcs11:object=b;serial=7f;type=private", TokenUri(serial="7f", object="b")),
        ("pkcs11:token=My%20token;id=%01%ff", TokenUri(token="My token", id=b"\x01\xff")),
        ("pkcs11:token=a;object=b?pin-source=/p", TokenUri(token="a", object="b", pin_source=Path("/p"))),
        (
            "pkcs11:token=a;object=b?pin-source=file:/p",
            TokenUri(token="a", object="b", pin_source=Path("/p")),
        ),
        (
            "pkcs11:token=a;object=b?module-path=/l.so&pin-source=file:///p%3F",
            TokenUri(token="a", object="b", pin_source=Path("/p?"), module_path=Path("/l.so")),
        ),
    ],
)
def test_a_uri_is_parsed(text: str, uri: TokenUri) -> None:
    assert TokenUri.parse(text) == uri


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pkcs11:", "token and the key"), ("pkcs11:token=a", "token and the key"), ("pkcs11:object=a", "token and the key"),
        ("token=a;object=b", "token and the key"), ("pkcs11:token=a;object=b;type=public", "not of a private key"),
        ("pkcs11:token=a;object=b;token=c", "there twice"), ("pkcs11:token=;object=b", "empty"),
        ("pkcs11:token;object=b", "empty"), ("pkcs11:token=a;object=%zz", "percent"), ("pkcs11:token=a b;object=c", "percent"),
        ("pkcs11:token=%ff;object=b", "UTF-8"), ("pkcs11:token=a%0a;object=b", "unprintable"),
        ("pkcs11:token=a;object=b;slot-id=1", "slot-id"), ("pkcs11:token=a;object=b;", "attribute ''"),
        ("pkcs11:token=a;object=b?pin-value=1234", "holds the PIN"), ("pkcs11:pin-value=1234;token=a;object=b", "holds the PIN"),
        ("pkcs11:token=a;object=b?pin-source=%7Ccat%20/p", "absolute"), ("pkcs11:token=a;object=b?pin-source=p", "absolute"),
        ("pkcs11:token=a;object=b?module-path=l.so", "absolute"), ("pkcs11:token=a;object=b?module-name=l", "module-name"),
    ],
)  # fmt: skip
def test_a_malformed_uri_is_refused(text: str, why: str) -> None:
    with pytest.raises(FormatError, match=why) as refused:
        TokenUri.parse(text)
    assert "1234" not in str(refused.value)


@given(
    st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1).filter(str.isprintable),
    st.binary(min_size=1),
)
def test_any_label_and_id_come_through_percent_encoding(label: str, identifier: bytes) -> None:
    text = f"pkcs11:token={quote(label, safe='')};object={quote(label)};id={quote(identifier, safe='')}"
    assert TokenUri.parse(text) == TokenUri(token=label, object=label, id=identifier)


@given(st.text())
def test_any_other_text_is_refused_with_a_declared_error(text: str) -> None:
    for prefix in ("", "pkcs11:", "pkcs11:token=a;object=b?"):
        try:
            TokenUri.parse(prefix + text)
        except FormatError:
            continue


@dataclass(frozen=True)
class Token:
    """A token of SoftHSM with two Ed25519 keys, one whose label another key shares, and a key of another kind."""

    uri: str
    public: bytes
    pin_file: Path


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    pkcs11 = pytest.importorskip("pkcs11", reason="the extra `pkcs11` is not installed")
    library = next(filter(lambda path: Path(path).exists(), LIBRARIES), None)
    if library is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed (Debian: apt install softhsm2)")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    pin_file = folder / "pin"
    pin_file.write_text(PIN + "\n")
    pin_file.chmod(0o600)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))  # read when the library is loaded
        environment.setenv(MODULE_VARIABLE, library)
        for label in ("office", "twin", "twin"):
            command = [
                "softhsm2-util",
                "--init-token",
                "--free",
                "--label",
                label,
                "--pin",
                PIN,
                "--so-pin",
                "56789",
            ]
            subprocess.run(command, check=True, capture_output=True)
        public = fill(pkcs11, library)
        yield Token("pkcs11:token=office;object=owner", public, pin_file)
        pkcs11.unload(library)


def fill(pkcs11: object, library: str) -> bytes:
    """Make the keys inside the token; the public half of the one labelled owner."""
    from pkcs11 import Attribute, KeyType, Mechanism, lib
    from pkcs11.util.ec import encode_named_curve_parameters

    with lib(library).get_token(token_label="office").open(rw=True, user_pin=PIN) as session:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("1.3.101.112")}
        for label, identifier in (
            ("owner", b"\x01"),
            ("double", b"\x02"),
            ("double", b"\x03"),
            ("alone", b"\x05"),
        ):
            parameters = session.create_domain_parameters(KeyType.EC_EDWARDS, curve, local=True)
            made, _ = parameters.generate_keypair(
                mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, label=label, id=identifier
            )
            if label == "owner":
                public = bytes(made[Attribute.EC_POINT])[-32:]
            if label == "alone":
                made.destroy()
        session.generate_keypair(KeyType.RSA, 2048, store=True, label="other", id=b"\x04")
    return public


def test_a_token_signs_an_anchor(token: Token) -> None:
    signer = open_signer(f"{token.uri}?pin-source={token.pin_file}")
    public = Ed25519PublicKey.from_public_bytes(token.public)
    assert signer.public_key == token.public and signer.key_id == key_id(public)
    signed = Envelope.from_bytes(sign_anchor(ARTIFACT, [signer, OWNER]))
    assert valid_signers(signed, {signer.key_id: public}) == {signer.key_id}
    assert AnchorArtifact.from_bytes(signed.payload) == ARTIFACT
    public.verify(signer.sign(b"x" * 100_000), b"x" * 100_000)


def test_the_pin_is_asked_for_once_where_the_uri_has_no_source(token: Token) -> None:
    ask = answering(PIN.encode())
    signer = open_signer(token.uri, pin=ask)
    assert signer.sign(b"a") and signer.sign(b"b") and len(ask.asked) == 1
    assert ask.asked == ["PIN for key 'owner' of token 'office'"]
    with pytest.raises(FieldprintError, match="needs a PIN"):
        open_signer(token.uri)


def test_two_keys_of_one_token_sign_side_by_side(token: Token) -> None:
    first = open_signer(token.uri, pin=answering(PIN.encode()))
    second = open_signer("pkcs11:token=office;id=%02", pin=answering(PIN.encode()))
    assert first.key_id != second.key_id
    assert len(Envelope.from_bytes(sign_anchor(ARTIFACT, [first, second])).signatures) == 2


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("pkcs11:token=elsewhere;object=owner", "no such token"),
        ("pkcs11:token=twin;object=owner", "several tokens"),
        ("pkcs11:serial=0000000000000000;object=owner", "no such token"),
        ("pkcs11:token=office;object=nobody", "needs the Ed25519 key"),
        ("pkcs11:token=office;object=owner;id=%02", "needs the Ed25519 key"),
        ("pkcs11:token=office;object=other", "needs the Ed25519 key"),
        ("pkcs11:token=office;object=alone", "and its public half"),
        ("pkcs11:token=office;object=double", "several keys"),
        ("pkcs11:token=office;object=owner?module-path=/nothing.so", "cannot be loaded"),
        (f"pkcs11:token=office;object=owner?module-path={__file__}", "cannot be loaded"),
    ],
)
def test_what_cannot_be_used_is_named(token: Token, uri: str, why: str) -> None:
    with pytest.raises(FieldprintError, match=why):
        open_signer(uri, pin=answering(PIN.encode()))


def test_a_wrong_pin_is_refused_and_not_shown(token: Token) -> None:
    with pytest.raises(FieldprintError, match="the PIN is wrong") as refused:
        open_signer(token.uri, pin=answering(b"98765"))
    assert "98765" not in str(refused.value)
    with pytest.raises(FormatError, match="not UTF-8"):
        open_signer(token.uri, pin=answering(b"\xff\xff\xff\xff"))
    assert open_signer(token.uri, pin=answering(PIN.encode())).sign(b"m")


def test_without_a_library_it_says_how_to_name_one(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODULE_VARIABLE)
    with pytest.raises(FieldprintError, match=MODULE_VARIABLE):
        open_signer(token.uri, pin=answering(PIN.encode()))
