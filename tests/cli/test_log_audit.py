"""`fieldprint log audit` and `fieldprint log serve` as an operator and an auditor run them."""

import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import (
    AnchorArtifact,
    load_private_key,
    sign_anchor,
    sign_registration,
    sign_revocation,
)
from fieldprint.note import NoteSigner
from fieldprint.registry import registration_entry, revocation_entry
from fieldprint.tlog import LogWriter
from tests.commands import COMMAND, make_policy_here, run_process
from tests.commands import run_here as cli
from tests.vectors.make_vectors import NOW

ORIGIN = "fieldprint.local/log"
SERVE = (
    *("log", "serve", "log", "--port", "0", "--token-file", "token"),
    *("--log-key", "keys/log.key", "--policy", "policy.toml"),
)


def append(folder: Path, entries: list[bytes], name: str = "log") -> None:
    signer = NoteSigner(ORIGIN, load_private_key(folder / "keys/log.key"))
    with LogWriter(folder / name, signer, create=True) as log:
        log.append(entries)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, a policy and a log of 600 entries."""
    path = tmp_path_factory.mktemp("cli-log")
    make_policy_here(path)
    append(path, [b"entry %d" % i for i in range(600)])
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where audits also leave their states."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "made/state-home"))
    return shutil.copytree(made, tmp_path / "made")


def test_an_audit_that_holds_ends_with_0_and_remembers(folder: Path) -> None:
    first = run_process(folder, "log", "audit", "log", "--policy", "policy.toml")
    assert first.returncode == 0, first.stderr
    assert "600 audited now" in first.stdout and "everything holds" in first.stdout
    append(folder, [b"more"])
    again = cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--json")
    report = json.loads(again.stdout)
    assert again.returncode == 0 and report["ok"] and report["first"] == 600 and report["position"] == 601
    (state,) = (folder / "state-home/fieldprint/audits").iterdir()
    assert report["state"] == str(state)
    restarted = cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--restart", "--json")
    assert json.loads(restarted.stdout)["first"] == 0


def test_a_bad_entry_ends_with_1_and_is_named(folder: Path) -> None:
    bundle = folder / "log/tile/entries/001"
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    run = cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--state", "state.json")
    assert run.returncode == 1
    assert "check 5 failed: entry 511 is not the one" in run.stderr and "first at entry 511" in run.stdout
    report = json.loads(cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--json").stdout)
    assert (report["ok"], report["check"], report["failed_at"]) == (False, 5, "entry 511")
    assert json.loads((folder / "state.json").read_text())["audited"]["position"] == 256


def test_a_second_history_ends_with_1_and_the_state_stays(folder: Path) -> None:
    assert (
        cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--state", "state.json").returncode == 0
    )
    before = (folder / "state.json").read_bytes()
    append(folder, [b"forged %d" % i for i in range(700)], "forked")
    run = cli(folder, "log", "audit", "forked", "--policy", "policy.toml", "--state", "state.json")
    assert run.returncode == 1 and "a second history" in run.stderr and "evidence" in run.stderr
    assert (folder / "state.json").read_bytes() == before
    told = cli(folder, "log", "audit", "forked", "--policy", "policy.toml", "--state", "state.json", "--json")
    report, shown = json.loads(told.stdout), (folder / "forked/checkpoint").read_text()
    assert (report["ok"], report["check"], report["checkpoint"]) == (False, 2, shown)
    assert (folder / report["evidence"]).read_text() == shown
    assert report["evidence"].startswith("state.json.checkpoint-") and report["evidence"] in told.stderr


def test_restarting_keeps_the_earlier_state(folder: Path) -> None:
    options = ("--policy", "policy.toml", "--state", "state.json")
    assert cli(folder, "log", "audit", "log", *options).returncode == 0
    before = (folder / "state.json").read_bytes()
    append(folder, [b"forged %d" % i for i in range(700)], "forked")
    for name in ("state.json.1", "state.json.2"):
        run = cli(folder, "log", "audit", "forked", *options, "--restart", "--json")
        assert run.returncode == 0 and json.loads(run.stdout)["earlier_state"] == name
    assert (folder / "state.json.1").read_bytes() == before
    (folder / "forked/checkpoint").unlink()
    failed = cli(folder, "log", "audit", "forked", *options, "--restart")
    assert failed.returncode == 1 and not (folder / "state.json.3").exists()


def test_findings_end_with_1_and_are_said_again_next_time(folder: Path) -> None:
    append(folder, [b'{"type":"abort","v":2}', b'{"type":"abort","v":3}'])
    for _ in range(2):
        run = cli(folder, "log", "audit", "log", "--policy", "policy.toml")
        assert run.returncode == 1
        assert "entry 600:" in run.stdout and "FAILED: 2 entries" in run.stdout


def test_usage_ends_with_2(folder: Path) -> None:
    vkey = cli(folder, "log", "new", "other", "--log-key", "keys/log.key").stdout.strip()
    for arguments in (
        ("log",),
        ("log", "--policy", "policy.toml", "--log-vkey", vkey),
        ("nowhere", "--policy", "policy.toml"),
        ("log", "--policy", "nothing.toml"),
        ("https://user@log.example", "--policy", "policy.toml"),
    ):
        run = cli(folder, "log", "audit", *arguments)
        assert run.returncode == 2, (arguments, run.stderr)
    run = cli(folder, "log", "audit", "log", "--log-vkey", vkey)
    assert run.returncode == 0 and "events were not checked" in run.stdout


def test_a_damaged_state_is_not_silently_begun_anew(folder: Path) -> None:
    (folder / "state.json").write_text("{}")
    run = cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--state", "state.json")
    assert run.returncode == 1 and "--restart" in run.stderr
    assert (folder / "state.json").read_text() == "{}"


def test_a_forged_revocation_is_found_by_whoever_first_audited_without_a_policy(folder: Path) -> None:
    vkey = cli(folder, "log", "new", "other", "--log-key", "keys/log.key").stdout.strip()
    stranger = Ed25519PrivateKey.generate()
    append(folder, [revocation_entry(sign_revocation("aa" * 32, "lost", NOW, [stranger]))])
    assert cli(folder, "log", "audit", "log", "--log-vkey", vkey).returncode == 0
    run = cli(folder, "log", "audit", "log", "--policy", "policy.toml")
    assert run.returncode == 1 and "signers" in run.stderr and "--restart" in run.stderr
    run = cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--restart")
    assert run.returncode == 1 and "entry 600:" in run.stdout


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[Path, str]]:
    (folder / "token").write_text("a-token-of-these-tests\n")
    (folder / "token").chmod(0o600)
    with subprocess.Popen(
        [*COMMAND, *SERVE], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "writable" in line, line + process.stderr.read() if process.stderr else line
        yield folder, line.split(" at ")[1].split(",")[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_served_log_is_written_and_audited_over_http(served: tuple[Path, str]) -> None:
    folder, url = served
    request = urllib.request.Request(
        f"{url}/add", b"posted", {"Authorization": "Bearer a-token-of-these-tests"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer) == {"index": 600, "tree_size": 601}
    run = cli(folder, "log", "audit", url, "--policy", "policy.toml", "--json")
    report = json.loads(run.stdout)
    assert run.returncode == 0 and report["tree_size"] == 601 and report["entries"]["other"] == 601


def test_an_anchor_is_verified_with_the_revocations_of_a_served_log(served: tuple[Path, str]) -> None:
    folder, url = served
    now = datetime.now(UTC).replace(microsecond=0)
    artifact = AnchorArtifact("a", "identity", "Your codename is Falcon.", now, now + timedelta(days=1))
    signed = sign_anchor(artifact, [load_private_key(folder / "keys/owner.key")])
    (folder / "anchor.json").write_bytes(signed)
    arguments = ("anchor", "verify", "anchor.json", "--policy", "policy.toml", "--log")
    run = cli(folder, *arguments, url)
    assert run.returncode == 1 and "not registered" in run.stderr
    key = load_private_key(folder / "keys/owner.key")
    entry = registration_entry(sign_registration(artifact, [key]))
    request = urllib.request.Request(
        f"{url}/add", entry, {"Authorization": "Bearer a-token-of-these-tests"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()
    run = cli(folder, *arguments, url)
    assert run.returncode == 0 and "not checked" not in run.stdout, run.stderr
    away = cli(folder, *arguments, "http://127.0.0.1:1/log")
    assert away.returncode == 1 and "http://127.0.0.1:1/log/checkpoint" in away.stderr


def test_a_token_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "token").write_text("a-token-of-these-tests\n")
    (folder / "token").chmod(0o644)
    run = cli(folder, *SERVE)
    assert run.returncode == 1 and "chmod 600" in run.stderr
    run = cli(folder, *SERVE[:-4])
    assert run.returncode == 2 and "belong together" in run.stderr


def test_an_audit_is_interrupted_and_goes_on(folder: Path) -> None:
    """Killed at some moment, the audit leaves a state that the next one takes up, or none."""
    append(folder, [b"entry %d" % i for i in range(60_000)])
    command = [*COMMAND, "log", "audit", "log", "--policy", "policy.toml", "--state", "state.json"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(0.4)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
    run = cli(folder, "log", "audit", "log", "--policy", "policy.toml", "--state", "state.json", "--json")
    report = json.loads(run.stdout)
    assert run.returncode == 0 and report["position"] == 60_600 == report["entries"]["other"]
