"""`fieldprint registry`, `anchor endorse` and `anchor supersede`, as a user walks through them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")

from sqlalchemy import text

from fieldprint.anchor import AnchorArtifact, Policy, StatusRule, load_private_key, sign_anchor
from fieldprint.anchor.policy import SignerRule
from fieldprint.registry import StatusProof, verify_not_revoked
from fieldprint.registry.database import RegistryDatabase
from fieldprint.tlog import LogReader
from tests.commands import run_here
from tests.registry.world import DAY, TIME

WRITE = ("--policy", "policy.toml", "--log", "log", "--log-key", "keys/log.key")
READ = ("--policy", "policy.toml", "--log", "log")
OWN = ("--key", "keys/owner.key", *WRITE)


def done(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    ended = run_here(folder, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert isinstance(said, dict)
    return said


def said(folder: Path, *arguments: str | Path) -> str:
    ended = run_here(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refused(folder: Path, *arguments: str | Path) -> str:
    ended = run_here(folder, *arguments)
    assert ended.returncode == 1, ended.stdout
    return ended.stderr


def artifact(name: str, **changes: Any) -> AnchorArtifact:
    values = {"kind": "memory", "text": f"a text of {name}", "not_before": TIME, "not_after": TIME + 30 * DAY}
    return AnchorArtifact(name=name, **(values | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys, a policy that names who endorses and who signs status roots, a log, and signed anchors old, new and web."""
    for name in ("owner", "log"):
        said(tmp_path, "keys", "new", name)
    said(tmp_path, "policy", "new", "policy.toml", "--signer", "keys/owner.pub", "--log-pub", "keys/log.pub")
    path = tmp_path / "policy.toml"
    policy = Policy.from_bytes(path.read_bytes())
    made = Policy(
        policy.keys,
        policy.kinds,
        policy.revokers,
        policy.revocation_threshold,
        policy.log,
        endorsement={"untrusted": SignerRule(("owner",))},
        status=StatusRule(("owner",), 1, 600),
    )
    path.write_bytes(made.to_bytes())
    said(tmp_path, "log", "new", "log", "--log-key", "keys/log.key")
    key = load_private_key(tmp_path / "keys/owner.key")
    for each in (artifact("old"), artifact("new"), artifact("web", taint=("untrusted",))):
        (tmp_path / f"{each.name}.json").write_bytes(sign_anchor(each, [key]))
    for name in ("old", "new"):
        said(tmp_path, "anchor", "register", f"{name}.json", *OWN)
    return tmp_path


def size(folder: Path) -> int:
    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    return LogReader(folder / "log", [policy.log_key]).checkpoint().tree_size


def test_sync_list_show_and_lineage(folder: Path) -> None:
    child = artifact("child", parents=(artifact("old").digest,))
    (folder / "child.json").write_bytes(sign_anchor(child, [load_private_key(folder / "keys/owner.key")]))
    said(folder, "anchor", "register", "child.json", *OWN)
    assert "no registry database" in refused(folder, "registry", "list")
    assert done(folder, "registry", "sync", *READ)["applied"] == 3
    assert done(folder, "registry", "sync", *READ)["applied"] == 0
    listed = done(folder, "registry", "list", "--kind", "memory")["anchors"]
    assert [each["name"] for each in listed] == ["child", "new", "old"]
    assert done(folder, "registry", "list", "--state", "active")["anchors"] == []
    shown = done(folder, "registry", "show", child.digest[:12])
    assert (shown["state"], shown["parents"]) == ("registered", [artifact("old").digest])
    lineage = done(folder, "registry", "lineage", artifact("old").digest)
    assert (lineage["ancestors"], lineage["descendants"]) == ([], [child.digest])
    for arguments in (("list",), ("show", child.digest), ("lineage", artifact("old").digest)):
        assert "child" in said(folder, "registry", *arguments)
    assert "no registered anchor" in refused(folder, "registry", "show", "00000000")


def test_supersede_asks_shows_and_appends(folder: Path) -> None:
    supersede = ("anchor", "supersede", "old.json", artifact("new").digest, "--reason", "newer", *OWN)
    before = size(folder)
    assert done(folder, *supersede, "--dry-run")["changed"] == [artifact("old").digest]
    ended = run_here(folder, *supersede)  # nobody is there to answer the question
    assert ended.returncode == 2 and "cannot be taken back" in ended.stderr and "--yes" in ended.stderr
    assert size(folder) == before
    assert done(folder, *supersede, "--yes")["index"] == before
    assert "(superseded)" in refused(folder, *supersede, "--yes")
    assert size(folder) == before + 1
    done(folder, "registry", "sync", *READ)
    assert done(folder, "registry", "show", artifact("old").digest)["superseded_by"] == artifact("new").digest


def test_a_tainted_anchor_is_endorsed_first(folder: Path) -> None:
    assert "forbidden-taint" in refused(folder, "anchor", "register", "web.json", *OWN)
    endorse = ("anchor", "endorse", "web.json", "--reason", "read", *OWN)
    before = size(folder)
    assert "does not have web" in refused(folder, *endorse, "--label", "web", "--key", "keys/none.key")
    assert "does not have web" in refused(folder, *endorse, "--label", "web", "--dry-run")
    unknown = ("anchor", "endorse", "ab" * 32, "--reason", "read", *OWN, "--label", "web")
    assert "no-rule" in refused(folder, *unknown, "--dry-run")
    assert size(folder) == before
    assert done(folder, *endorse, "--label", "untrusted", "--yes")["index"] == before
    verify = ("anchor", "verify", "web.json")
    assert "check 5 failed" in refused(folder, *verify, *READ)  # not registered yet
    said(folder, "anchor", "register", "web.json", *OWN)
    for named in ("web.json", artifact("web", taint=("untrusted",)).digest):
        again = ("anchor", "endorse", named, "--reason", "read", *OWN, "--label", "untrusted", "--yes")
        assert "has it no more" in refused(folder, *again)
    done(folder, "registry", "sync", *READ)
    shown = done(folder, "registry", "show", artifact("web", taint=("untrusted",)).digest)
    assert (shown["taint"], shown["own_taint"], shown["endorsed"]) == ([], ["untrusted"], ["untrusted"])


def test_rebuild_compares_asks_and_replaces(folder: Path) -> None:
    done(folder, "registry", "sync", *READ)
    rebuild = ("registry", "rebuild", *READ)
    assert done(folder, *rebuild, "--dry-run")["differ"] == {}
    with (
        RegistryDatabase(str(folder / "registry.db")) as database,
        database._database.writing() as connection,
    ):
        connection.execute(text("UPDATE registry_anchors SET taint = '[]', state = 'active'"))
    ended = run_here(folder, *rebuild, "--dry-run", "--json")
    assert ended.returncode == 1 and json.loads(ended.stdout)["differ"] == {"registry_anchors": 4}
    assert run_here(folder, *rebuild).returncode == 2  # nobody is there to answer
    assert done(folder, *rebuild, "--yes")["anchors"] == {"registered": 2}
    assert done(folder, *rebuild, "--dry-run")["differ"] == {}


def test_another_policy_says_what_to_do(folder: Path) -> None:
    done(folder, "registry", "sync", *READ)
    changed = (folder / "policy.toml").read_text().replace("max_age_seconds = 600", "max_age_seconds = 700")
    (folder / "policy.toml").write_text(changed)
    assert "registry rebuild" in refused(folder, "registry", "sync", *READ)
    assert done(folder, "registry", "rebuild", *READ, "--yes")["applied"] == 2


def test_status_signs_and_proves(folder: Path) -> None:
    status = ("registry", "status", *READ)
    assert done(folder, *status)["last"] is None
    digest = artifact("new").digest
    assert "no status root" in refused(folder, *status, "--prove", digest)
    signed = (*status, "--key", "keys/owner.key", "--log-key", "keys/log.key")
    before = size(folder)
    assert done(folder, *signed, "--dry-run")["appended"] is None and size(folder) == before
    assert done(folder, *signed, "--prove", digest, "--out", "new.proof")["appended"] == before
    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    proof = StatusProof.from_bytes((folder / "new.proof").read_bytes())
    assert verify_not_revoked(proof, policy, digest, datetime.now(UTC)).count == 0
    said(folder, "anchor", "revoke", "new.json", *OWN, "--reason", "lost", "--yes")
    assert "revoked" in refused(folder, *status, "--prove", digest)
    assert "since the last status root" in refused(folder, *status, "--prove", artifact("old").digest)
    assert done(folder, *signed)["last"]["count"] == 1
    shown = run_here(folder, *status, "--prove", artifact("old").digest)
    assert "not revoked" in shown.stderr
    assert StatusProof.from_bytes(shown.stdout.encode()).to_bytes() == shown.stdout.encode()
    found = done(folder, *status, "--prove", artifact("old").digest)
    assert StatusProof.from_bytes(found["proof"].encode()).to_bytes() == shown.stdout.encode()
    assert run_here(folder, *status, "--key", "keys/owner.key").returncode == 2
    misspelt = run_here(folder, *status, "--prove", "abc")
    assert misspelt.returncode == 2
    assert "64 hex digits" in misspelt.stderr


def test_who_has_no_log_verifies_with_a_status_proof(folder: Path) -> None:
    verify = ("anchor", "verify", "new.json", "--policy", "policy.toml")
    assert "check 16 failed" in refused(folder, *verify)
    signed = ("registry", "status", *READ, "--key", "keys/owner.key", "--log-key", "keys/log.key")
    done(folder, *signed, "--prove", "new.json", "--out", "new.proof")
    assert "overrides not checked" in said(folder, *verify, "--status", "new.proof")
    both = run_here(folder, *verify, "--status", "new.proof", "--log", "log")
    assert both.returncode == 2
    assert "no --log" in both.stderr
    text = (folder / "policy.toml").read_text()
    (folder / "silent.toml").write_text(text[: text.index("[status]")])
    silent = run_here(
        folder, "anchor", "verify", "new.json", "--policy", "silent.toml", "--status", "new.proof"
    )
    assert silent.returncode == 2
    assert "table `status`" in silent.stderr
    said(folder, "anchor", "revoke", "new.json", *OWN, "--reason", "lost", "--yes")
    done(folder, *signed, "--prove", "old.json", "--out", "old.proof")
    assert "check 16 failed" in refused(folder, *verify, "--status", "old.proof")
    said(folder, "anchor", "verify", "old.json", "--policy", "policy.toml", "--status", "old.proof")


def test_a_password_in_the_url_is_not_shown(folder: Path) -> None:
    url = "postgresql://me:secret-word@127.0.0.1:1/registry"
    for code, ended in (
        (1, run_here(folder, "registry", "sync", *READ, "--database", url, "--json")),
        (2, run_here(folder, "registry", "rebuild", *READ, "--database", url)),
    ):
        assert ended.returncode == code and "secret-word" not in ended.stdout + ended.stderr
