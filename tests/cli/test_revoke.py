"""`fieldprint anchor revoke` and `policy show`: what is asked first, what is told to whom."""

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fieldprint.anchor import AnchorArtifact, Policy, SignerRule, load_private_key, sign_anchor
from fieldprint.tlog import LogReader
from tests.commands import COMMAND, make_policy_here, run_here

COMMON = ("--policy", "policy.toml", "--log", "log")
WRITE = (*COMMON, "--key", "keys/owner.key", "--log-key", "keys/log.key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two registered anchors; the second comes from the first."""
    make_policy_here(tmp_path)
    assert run_here(tmp_path, "log", "new", "log", "--log-key", "keys/log.key").returncode == 0
    owner = load_private_key(tmp_path / "keys" / "owner.key")
    now = datetime.now(UTC).replace(microsecond=0)
    parents: tuple[str, ...] = ()
    for name in ("first", "second"):
        made = AnchorArtifact(
            name, "memory", f"The {name} text.", now, now + timedelta(days=1), parents=parents
        )
        (tmp_path / name).write_bytes(sign_anchor(made, [owner]))
        ended = run_here(tmp_path, "anchor", "register", name, *WRITE)
        assert ended.returncode == 0, ended.stderr
        parents = (made.digest,)
    return tmp_path


def test_a_dry_run_says_what_else_goes_and_revokes_nothing(folder: Path) -> None:
    ended = run_here(folder, "anchor", "revoke", "first", *WRITE, "--reason", "lost", "--dry-run", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["dry_run"] is True
    assert len(found["descendants"]) == 1
    assert run_here(folder, "anchor", "verify", "second", *COMMON).returncode == 0


def test_without_a_terminal_nothing_is_revoked_but_with_yes(folder: Path) -> None:
    revoke = ("anchor", "revoke", "first", *WRITE, "--reason", "lost")
    ended = run_here(folder, *revoke, "--json")
    assert ended.returncode == 2
    assert "--yes" in ended.stderr
    assert "1 that come from it" in json.loads(ended.stdout)["error"]
    assert run_here(folder, "anchor", "verify", "first", *COMMON).returncode == 0
    assert run_here(folder, *revoke, "--yes").returncode == 0


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_at_a_terminal_it_is_asked(folder: Path, answer: str, code: int) -> None:
    child, terminal = os.openpty()
    command = [*COMMAND, "anchor", "revoke", "first", *WRITE, "--reason", "lost"]
    with subprocess.Popen(
        command, cwd=folder, stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(child, f"{answer}\n".encode())
        assert process.stderr is not None
        asked = process.stderr.read()
    os.close(child)
    os.close(terminal)
    assert "Revoke " in asked and "[y/N]" in asked
    assert process.returncode == code
    assert run_here(folder, "anchor", "verify", "first", *COMMON).returncode == 1 - code


def test_by_digest_and_told_to_the_database(folder: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")
    assert run_here(folder, "registry", "sync", *COMMON).returncode == 0
    digest = json.loads(run_here(folder, "anchor", "show", "first").stdout)["digest"]
    ended = run_here(
        folder, "anchor", "revoke", digest, *WRITE, "--reason", "lost", "--yes", "--database", "registry.db"
    )
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(run_here(folder, "registry", "show", digest, "--json").stdout)
    assert shown["state"] == "revoked"
    refused = run_here(folder, "anchor", "verify", "second", *COMMON)
    assert refused.returncode == 1
    assert "check 13 failed" in refused.stderr


def test_a_database_that_cannot_be_told_does_not_undo_the_revocation(folder: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")
    ended = run_here(
        folder,
        "anchor",
        "revoke",
        "first",
        *WRITE,
        "--reason",
        "lost",
        "--yes",
        "--database",
        "nowhere/registry.db",
    )
    assert ended.returncode == 0
    assert "it is in the log" in ended.stderr
    assert "check 8 failed" in run_here(folder, "anchor", "verify", "first", *COMMON).stderr


def test_what_is_unknown_is_revoked_and_the_second_time_changes_nothing(folder: Path) -> None:
    """A key that leaked may have signed what nobody has registered yet."""
    revoke = ("anchor", "revoke", "ab" * 32, *WRITE, "--yes", "--json", "--reason")
    first, second = (run_here(folder, *revoke, reason) for reason in ("leaked", "again"))
    assert json.loads(first.stdout)["index"] == 2 and not json.loads(first.stdout)["already"]
    found = json.loads(second.stdout)
    assert second.returncode == 0 and found["already"] and found["index"] is None
    assert found["reason"] == "leaked" and found["synced"] is None
    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    assert LogReader(folder / "log", [policy.log_key]).checkpoint().tree_size == 3


def test_a_second_revocation_brings_a_stale_database_up_to_date(folder: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")
    digest = json.loads(run_here(folder, "anchor", "show", "first").stdout)["digest"]
    revoke = ("anchor", "revoke", digest, *WRITE, "--reason", "lost", "--yes")
    told = ("--database", "registry.db")

    def state() -> object:
        return json.loads(run_here(folder, "registry", "show", digest, "--json").stdout)["state"]

    assert run_here(folder, "registry", "sync", *COMMON).returncode == 0
    assert run_here(folder, *revoke).returncode == 0
    assert state() == "registered"
    run_here(folder, *revoke, *told, "--dry-run")
    assert state() == "registered"
    run_here(folder, "keys", "new", "stranger")
    ended = run_here(folder, *revoke[:3], *COMMON, *revoke[-3:], *told, "--key", "keys/stranger.key", "--log-key", "keys/log.key")  # fmt: skip
    assert ended.returncode == 1 and "signatures" in ended.stderr and state() == "registered"
    ended = run_here(folder, *revoke, *told)
    assert ended.returncode == 0 and "revoked already" in ended.stdout and "knows it" in ended.stdout
    assert state() == "revoked"
    failed = run_here(folder, *revoke, "--database", "nowhere/registry.db", "--json")
    assert failed.returncode == 1 and json.loads(failed.stdout)["synced"] is False
    assert "does not know it" in failed.stderr


def test_policy_new_says_who_may_endorse(tmp_path: Path) -> None:
    for name in ("owner", "second", "log"):
        assert run_here(tmp_path, "keys", "new", name).returncode == 0
    new = ("policy", "new", "--signer", "keys/owner.pub", "--log-pub", "keys/log.pub")
    both = ("--endorser", "keys/owner.pub", "--endorser", "keys/second.pub")
    made = {"all.toml": both, "one.toml": (*both, "--endorser-threshold", "1"), "none.toml": ()}
    for file, options in made.items():
        assert run_here(tmp_path, *new, file, *options).returncode == 0
    rules = {file: Policy.from_bytes((tmp_path / file).read_bytes()).endorsement for file in made}
    assert rules["all.toml"] == {"untrusted": SignerRule(("owner", "second"), 2)}
    assert rules["one.toml"] == {"untrusted": SignerRule(("owner", "second"), 1)}
    assert rules["none.toml"] == {}
    assert run_here(tmp_path, *new, "x", "--endorser-threshold", "1").returncode == 2
    assert run_here(tmp_path, *new, "x", *both, "--endorser-threshold", "3").returncode == 1
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/owner.pub").write_bytes((tmp_path / "keys/second.pub").read_bytes())
    ended = run_here(tmp_path, *new, "x", "--endorser", "copy/owner.pub")
    assert ended.returncode == 2 and "the same name" in ended.stderr
    assert not (tmp_path / "x").exists()


def test_policy_show_says_who_may_do_what(folder: Path) -> None:
    ended = run_here(folder, "policy", "show", "policy.toml")
    assert ended.returncode == 0
    assert "kind identity" in ended.stdout and "owner" in ended.stdout and "revocation" in ended.stdout
    found = json.loads(run_here(folder, "policy", "show", "policy.toml", "--json").stdout)
    assert found["purposes"]["revocation"] == {"signers": ["owner"], "threshold": 1}
    assert found["kinds"]["memory"]["on_revoke"] == "stop"
    (folder / "policy.toml").write_text("log = 3")
    assert run_here(folder, "policy", "show", "policy.toml").returncode == 1
