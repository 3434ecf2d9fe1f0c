"""`fieldprint keys`, and `--key` wherever the key lies: encrypted files, the keyring, keys on two machines."""

import json
import os
import pty
import select
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fieldprint.anchor import AnchorArtifact, Envelope, load_private_key, load_public_key, sign_anchor
from tests.commands import COMMAND, make_policy_here, run_process
from tests.commands import run_here as cli

SECRET = "correct horse battery"
NOW = datetime.now(UTC).replace(microsecond=0)
ARTIFACT = AnchorArtifact("me", "identity", "Be kind.", NOW, NOW + timedelta(days=1))
LOG = ("--policy", "policy.toml", "--log", "log", "--log-key", "keys/log.key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A passphrase in a file, and an encrypted key."""
    for name, text in (("secret", SECRET), ("wrong", "incorrect horse")):
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    made = cli(tmp_path, "keys", "new", "safe", "--encrypt", "--passphrase-file", "secret", "--json")
    assert made.returncode == 0 and json.loads(made.stdout)["encrypted"] is True, made.stderr
    return tmp_path


def said(folder: Path, *arguments: str) -> str:
    ended = cli(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_an_encrypted_key_is_shown_with_its_passphrase(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"ENCRYPTED" in (folder / "keys/safe.key").read_bytes()
    ways = [said(folder, "keys", "show", "keys/safe.key", "--passphrase-file", "secret", "--json")]
    monkeypatch.setenv("FIELDPRINT_KEY_PASSPHRASE_FILE", "secret")
    ways.append(said(folder, "keys", "show", "keys/safe.key", "--json"))
    shown = [json.loads(way) for way in ways]
    public = json.loads(said(folder, "keys", "show", "keys/safe.pub", "--json"))
    assert shown[0] == shown[1] == public | {"half": "private"} and public["half"] == "public"
    assert public["public_key"] == load_public_key(folder / "keys/safe.pub").public_bytes_raw().hex()
    said(folder, "keys", "show", "keys/safe.key", "--pub", "again.pub")
    assert (folder / "again.pub").read_bytes() == (folder / "keys/safe.pub").read_bytes()
    assert "not overwritten" in cli(folder, "keys", "show", "keys/safe.pub", "--pub", "again.pub").stderr


def test_a_passphrase_comes_through_a_pipe(folder: Path) -> None:
    run = subprocess.run(
        [
            "bash",
            "-c",
            '"$@" --passphrase-file /dev/fd/3 3< <(cat secret)',
            "-",
            *COMMAND,
            "keys",
            "show",
            "keys/safe.key",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0 and "private half" in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("keys", "show", "keys/safe.key"), 1, "passphrase of keys/safe.key is needed"),
        (("keys", "show", "keys/safe.key", "--passphrase-file", "wrong"), 1, "cannot be decrypted"),
        (("keys", "show", "keys/safe.key", "--passphrase-file", "none"), 1, "none with the passphrase"),
        (("keys", "new", "a", "--passphrase-file", "secret"), 2, "without --encrypt"),
        (("keys", "new", "a", "--encrypt", "--ml-dsa-44", "--passphrase-file", "secret"), 2, "witness"),
        (("keys", "new", "a", "--encrypt"), 1, "new passphrase of keys/a.key is needed"),
        (("keys", "show", "keyring:nothing"), 1, "SERVICE/NAME"),
        (("keys", "show", "pkcs11:token=a;object=b?pin-value=1"), 1, "pin-source"),
        (("log", "new", "log", "--log-key", "keys/safe.key"), 1, "is encrypted"),
        (("anchor", "sign", "secret", "--key", "keys/safe.key", "--out", "a"), 1, "--passphrase-file"),
    ],
)
def test_what_is_refused_says_why_and_leaves_nothing(
    folder: Path, arguments: tuple[str, ...], code: int, what: str
) -> None:
    before = sorted(folder.rglob("*"))
    ended = cli(folder, *arguments)
    assert ended.returncode == code and what in ended.stderr.replace("\n", " "), ended.stderr
    assert SECRET not in ended.stderr and "incorrect horse" not in ended.stderr
    assert [path for path in sorted(folder.rglob("*")) if path not in before and path.name != "log"] == []


class Terminal:
    """A command at a terminal of its own, and what is typed there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self._command = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""
        self._answered = 0  # so much of what was shown

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *what: object) -> None:
        self._command.kill()
        self._command.wait()
        os.close(self._master)

    def answer(self, question: str, typed: str) -> None:
        """Wait for the question, then type."""
        while question not in self.shown[self._answered :]:
            assert self._read(), f"{question!r} was not asked: {self.shown}"
        self._answered = len(self.shown)
        time.sleep(0.2)  # the echo is switched off around the time at which the question is written
        os.write(self._master, typed.encode() + b"\n")

    def end(self) -> int:
        """The exit code, once everything is shown."""
        while self._read():
            pass
        return self._command.wait(30)

    def _read(self) -> bool:
        assert select.select([self._master], [], [], 30)[0], f"nothing more was shown: {self.shown}"
        try:
            part = os.read(self._master, 4096)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        self.shown += part.decode()
        return bool(part)


def test_a_passphrase_is_asked_for_at_the_terminal_and_not_shown(folder: Path) -> None:
    with Terminal(folder, "keys", "new", "typed", "--encrypt") as terminal:
        terminal.answer("new passphrase of keys/typed.key: ", SECRET)
        terminal.answer("Repeat for confirmation: ", SECRET + "?")
        terminal.answer("new passphrase of keys/typed.key: ", SECRET)
        terminal.answer("Repeat for confirmation: ", SECRET)
        assert terminal.end() == 0 and "do not match" in terminal.shown and SECRET not in terminal.shown
    assert load_private_key(folder / "keys/typed.key", lambda _: SECRET.encode())
    with Terminal(folder, "keys", "show", "keys/typed.key") as terminal:
        terminal.answer("passphrase of keys/typed.key: ", SECRET)
        assert terminal.end() == 0 and "private half" in terminal.shown and SECRET not in terminal.shown


def test_a_short_passphrase_leaves_no_key(folder: Path) -> None:
    with Terminal(folder, "keys", "new", "typed", "--encrypt") as terminal:
        terminal.answer("new passphrase of keys/typed.key: ", "too short")
        terminal.answer("Repeat for confirmation: ", "too short")
        assert terminal.end() == 2 and "12 to 1023 bytes" in terminal.shown
    assert not (folder / "keys/typed.key").exists()


def test_the_same_reference_signs_revocations(folder: Path) -> None:
    """By an encrypted file and by a key in the keyring; the registry believes both."""
    pytest.importorskip("keyrings.alt.file")
    make_policy_here(folder)
    signers = ("--signer", "keys/safe.pub", "--signer", "keys/owner.pub")
    (folder / "policy.toml").unlink()
    said(folder, "policy", "new", "policy.toml", *signers, "--log-pub", "keys/log.pub")
    said(folder, "log", "new", "log", "--log-key", "keys/log.key")
    owner = load_private_key(folder / "keys/owner.key")
    (folder / "a.json").write_bytes(sign_anchor(ARTIFACT, [owner]))
    (folder / "b.json").write_bytes(sign_anchor(replace(ARTIFACT, name="b"), [owner]))
    why = ("--reason", "lost", *LOG, "--yes", "--json")
    by_file = ("anchor", "revoke", "a.json", "--key", "keys/safe.key", "--passphrase-file", "secret", *why)
    assert json.loads(said(folder, *by_file))["index"] == 0
    ring = {
        "PYTHON_KEYRING_BACKEND": "keyrings.alt.file.PlaintextKeyring",
        "XDG_DATA_HOME": str(folder / "ring"),
    }
    place, secret = "keyring:fieldprint/safe", ("--passphrase-file", "secret")
    stored = run_process(folder, "keys", "import-keyring", "keys/safe.key", place, *secret, **ring)
    assert stored.returncode == 0 and "can be deleted" in stored.stdout, stored.stderr
    twice = run_process(folder, "keys", "import-keyring", "keys/safe.key", place, *secret, **ring)
    assert twice.returncode == 1 and "not overwritten" in twice.stderr
    (folder / "keys/safe.key").unlink()
    by_ring = run_process(folder, "anchor", "revoke", "b.json", "--key", place, *why, **ring)
    assert json.loads(by_ring.stdout)["index"] == 1, by_ring.stderr
    ended = cli(folder, "anchor", "verify", "a.json", "--policy", "policy.toml", "--log", "log")
    assert ended.returncode == 1 and "revoked" in ended.stderr


def test_a_threshold_is_met_by_keys_on_two_machines(folder: Path) -> None:
    make_policy_here(folder)
    (folder / "policy.toml").unlink()
    signers = ("--signer", "keys/safe.pub", "--signer", "keys/owner.pub", "--threshold", "2")
    said(folder, "policy", "new", "policy.toml", *signers, "--log-pub", "keys/log.pub")
    owner = load_private_key(folder / "keys/owner.key")
    (folder / "one.json").write_bytes(sign_anchor(ARTIFACT, [owner]))
    verify = ("anchor", "verify", "--policy", "policy.toml")
    assert "check 4 failed" in cli(folder, *verify, "one.json").stderr
    add = ("anchor", "cosign", "one.json", "--key")
    by_safe = (*add, "keys/safe.key", "--passphrase-file", "secret", "--out", "two.json")
    wrong = cli(folder, *by_safe, "--digest", "ab" * 32)
    assert (
        wrong.returncode == 1 and "Nothing was signed" in wrong.stderr and not (folder / "two.json").exists()
    )
    done = json.loads(
        said(folder, *by_safe, "--digest", ARTIFACT.digest, "--policy", "policy.toml", "--json")
    )
    assert (done["counted"], done["threshold"], len(done["signatures"])) == (2, 2, 2)
    assert "signed by" in said(folder, *verify, "two.json")
    assert Envelope.from_bytes((folder / "two.json").read_bytes()).payload == ARTIFACT.to_bytes()
    again = cli(folder, *add, "keys/owner.key", "--out", "three.json")
    assert (
        again.returncode == 1 and "would sign twice" in again.stderr and not (folder / "three.json").exists()
    )
    kept = cli(folder, *by_safe)
    assert kept.returncode == 2 and "not overwritten" in kept.stderr
