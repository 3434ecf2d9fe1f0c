"""Keys in a keyring: the package's own file backend, in a folder of the test's."""

import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fieldprint.anchor import KeySigner, open_signer
from fieldprint.anchor.keyring import store_in_keyring
from fieldprint.errors import FieldprintError, FormatError

keyring = pytest.importorskip("keyring", reason="the extra `keyring` is not installed")
pytest.importorskip("keyrings.alt.file", reason="keyrings.alt is not installed")

OWNER = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
PLACE = "keyring:fieldprint/owner"


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", backend)
    monkeypatch.setattr(keyring.core, "_keyring_backend", None)  # chosen again, from the environment


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keyring in a file under this folder; the user's own is not touched."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    use_backend(monkeypatch, "keyrings.alt.file.PlaintextKeyring")
    return tmp_path


def test_a_stored_key_signs(folder: Path) -> None:
    store_in_keyring(PLACE, OWNER)
    assert list(folder.rglob("keyring_pass.cfg")), "not the keyring of this test"
    signer = open_signer(PLACE)
    assert signer.sign(b"message") == OWNER.sign(b"message") and signer.key_id == KeySigner(OWNER).key_id


def test_a_service_may_have_slashes() -> None:
    store_in_keyring("keyring:a/b/c", OWNER)
    assert open_signer("keyring:a/b/c").key_id == KeySigner(OWNER).key_id
    assert keyring.get_password("a/b", "c") is not None


def test_a_key_is_not_overwritten() -> None:
    store_in_keyring(PLACE, OWNER)
    with pytest.raises(FieldprintError, match="not overwritten"):
        store_in_keyring(PLACE, Ed25519PrivateKey.generate())
    assert open_signer(PLACE).key_id == KeySigner(OWNER).key_id


def test_what_is_not_there_is_named_with_the_command_that_stores_it() -> None:
    with pytest.raises(FormatError, match="import-keyring FILE keyring:fieldprint/owner"):
        open_signer(PLACE)


@pytest.mark.parametrize("stored", ["", "secret words", "other"])
def test_what_is_no_ed25519_key_is_refused_and_not_shown(stored: str) -> None:
    if stored == "other":
        other = X25519PrivateKey.generate()
        stored = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    keyring.set_password("fieldprint", "owner", stored)
    with pytest.raises(FormatError, match=r"no private key in PEM|no Ed25519 key") as refused:
        open_signer(PLACE)
    assert not stored or stored not in str(refused.value)


def test_a_machine_without_a_keyring_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "keyring.backends.fail.Keyring")
    for attempt in (lambda: open_signer(PLACE), lambda: store_in_keyring(PLACE, OWNER)):
        with pytest.raises(FieldprintError, match="has no keyring"):
            attempt()


def test_a_keyring_that_keeps_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "keyring.backends.null.Keyring")
    with pytest.raises(FieldprintError, match="did not keep"):
        store_in_keyring(PLACE, OWNER)


def test_a_locked_keyring_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of another package, found as `keyring` finds all, that is locked."""
    (folder / "locked_backend.py").write_text(
        "from keyring import backend, errors\n"
        "class Keyring(backend.KeyringBackend):\n"
        "    priority = 0.1\n"
        "    def get_password(self, service, username):\n"
        "        raise errors.KeyringLocked('a secret in the text')\n"
        "    set_password = get_password\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    try:
        use_backend(monkeypatch, "locked_backend.Keyring")
        with pytest.raises(FieldprintError, match="unlocked") as refused:
            open_signer(PLACE)
        assert "a secret" not in str(refused.value)
    finally:
        sys.modules.pop("locked_backend", None)
