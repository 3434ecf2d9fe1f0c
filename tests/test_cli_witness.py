"""Commands of witnesses and proofs, the witnesses as processes: keys, a policy, two witnesses, cosigning, proving, verifying."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex

import pytest

from fieldprint.anchor import AnchorArtifact, Policy, load_private_key, sign_anchor
from fieldprint.cli.cosigning import open_cosigner
from fieldprint.note import NoteSigner
from fieldprint.tlog import LogProof, LogWriter, TrustPolicy, verify_log_proof
from tests.commands import COMMAND, run_here
from tests.vectors.make_vectors import SIGNER, story
from tests.vectors.make_vectors import policy as receipt_policy

ENTRIES = [b"one", b"two \x1b[31m", b"three"]


def cli(folder: Path, *arguments: str | Path, code: int = 0) -> str:
    """What a command says; it must end with `code`."""
    ended = run_here(folder, *arguments)
    assert ended.returncode == code, ended.stderr
    return ended.stdout if code == 0 or "--json" in arguments else ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, a log of three entries, and a policy that needs two witnesses."""
    path = tmp_path_factory.mktemp("witnesses")
    for name in ("owner", "log", "north"):
        cli(path, "keys", "new", name)
    cli(path, "keys", "new", "lattice", "--ml-dsa-44")
    (path / "log.vkey").write_text(cli(path, "log", "new", "log", "--log-key", "keys/log.key"))
    signer = NoteSigner("fieldprint.local/log", load_private_key(path / "keys/log.key"))
    with LogWriter(path / "log", signer) as log:
        log.append(ENTRIES)
    arguments: list[str] = []
    for name in ("north", "lattice"):
        shown = cli(
            path, "log", "witness", "--key", f"keys/{name}.key", "--name", f"w.example/{name}", "--show-key"
        )
        (path / f"{name}.vkey").write_text(shown)
        arguments += ["--witness", shown.strip()]
    files = ["--signer", "keys/owner.pub", "--log-pub", "keys/log.pub"]
    cli(path, "policy", "new", "policy.toml", *files, *arguments)
    cli(path, "policy", "new", "one.toml", *files, *arguments, "--min-witnesses", "1")
    return path


@contextmanager
def witness(folder: Path, name: str, *options: str, state: str = "witness.db") -> Iterator[str]:
    """The command as a process; gives its URL, and ends it as an operator would."""
    arguments = [
        "log",
        "witness",
        "--key",
        f"keys/{name}.key",
        "--name",
        f"w.example/{name}",
        "--port",
        "0",
        "--json",
    ]
    arguments += ["--state", f"{name}-{state}", *options]
    if not (folder / f"{name}-{state}").exists():
        arguments.append("--new-state")
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()
        said = json.loads(line)
        assert said["keys"] == [(folder / f"{name}.vkey").read_text().strip()]
        assert len(said["logs"]) == 1
        yield said["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 0 and error.endswith("stopped\n")


@pytest.fixture(scope="module")
def quorum(folder: Path) -> Iterator[Path]:
    """A trust policy whose witnesses run."""
    log = (folder / "log.vkey").read_text().strip()
    (folder / "logs.txt").write_text(f"log {log}\nquorum none\n")
    with (
        witness(folder, "north", "--log-vkey", log) as north,
        witness(folder, "lattice", "--logs", "logs.txt") as lattice,
    ):
        lines = [f"log {log}"]
        for name, url in (("north", north), ("lattice", lattice)):
            lines.append(f"witness {name} {(folder / f'{name}.vkey').read_text().strip()} {url}")
        lines += ["group both all north lattice", "quorum both"]
        path = folder / "quorum.txt"
        path.write_text("\n".join(lines) + "\n")
        yield path


def test_the_policy_names_the_witnesses(folder: Path) -> None:
    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    assert policy.quorum_text == "2 of w.example/north, w.example/lattice"
    assert Policy.from_bytes((folder / "one.toml").read_bytes()).minimum_witnesses == 1


def test_a_proof_is_cosigned_and_checked_by_either_policy(folder: Path, quorum: Path, tmp_path: Path) -> None:
    proof, entry = tmp_path / "two.tlog-proof", tmp_path / "two"
    options = ["--policy", "policy.toml", "--quorum", quorum]
    said = json.loads(
        cli(folder, "log", "proof", "log", "1", *options, "-o", proof, "--entry-out", entry, "--json")
    )
    assert said == {"proof": str(proof), "index": 1, "tree_size": 3, "bytes": proof.stat().st_size}
    assert entry.read_bytes() == ENTRIES[1]
    for policy in ("policy.toml", quorum):
        out = json.loads(cli(folder, "verify", proof, "--policy", policy, "--entry", entry, "--json"))
        assert (out["verified"], out["index"], out["tree_size"]) == (True, 1, 3)
        assert out["witnesses"] == ["w.example/lattice", "w.example/north"]
    shown = cli(folder, "verify", proof, "--policy", "policy.toml", "--entry", entry)
    assert "cosigned by w.example/lattice, w.example/north\ntwo ?[31m" in shown
    again = tmp_path / "whole.tlog-proof"
    cli(folder, "log", "proof", "log", "1", *options, "-o", again, "--with-entry")
    cli(folder, "verify", again, "--policy", quorum)
    trust = TrustPolicy.from_bytes(quorum.read_bytes())
    assert verify_log_proof(again.read_bytes(), trust).entry == ENTRIES[1]


def test_a_proof_that_fails_says_which_check(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "plain.tlog-proof"
    cli(folder, "log", "proof", "log", "0", "--policy", "policy.toml", "-o", proof)
    assert "is not overwritten" in cli(
        folder, "log", "proof", "log", "0", "--policy", "policy.toml", "-o", proof, code=2
    )
    (tmp_path / "one").write_bytes(ENTRIES[0])
    arguments = ["verify", proof, "--policy", "policy.toml"]
    for extra, check in (([], 1), (["--entry", tmp_path / "one"], 3)):
        told = json.loads(cli(folder, *arguments, *extra, "--json", code=1))
        assert told["check"] == check and "plain.tlog-proof" in told["error"]
    (folder / "trust.txt").write_text(f"# no witness\nlog {(folder / 'log.vkey').read_text()}quorum none\n")
    arguments = ["verify", proof, "--policy", "trust.txt", "--entry"]
    cli(folder, *arguments, tmp_path / "one")
    assert "check 4 failed" in cli(folder, *arguments, "policy.toml", code=1)
    data = proof.read_bytes()
    proof.write_bytes(data.replace(b"\n3\n", b"\n4\n"))
    assert "check 2 failed" in cli(folder, *arguments, tmp_path / "one", code=1)
    assert LogProof.from_bytes(data).index == 0


def test_the_checkpoint_is_cosigned_or_nothing_is_written(folder: Path, quorum: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    said = cli(folder, "log", "cosign", "log", "--policy", "policy.toml", "--quorum", quorum, "-o", note)
    assert said.startswith(f"wrote {note}: cosigned by") and note.read_bytes().count(b"w.example/") == 2
    broken = tmp_path / "broken.txt"
    broken.write_text(_unreachable(quorum))
    arguments = [
        "log",
        "cosign",
        "log",
        "--policy",
        "policy.toml",
        "--quorum",
        broken,
        "-o",
        tmp_path / "other",
    ]
    assert "is not met" in cli(folder, *arguments, "--timeout", "2", code=1)
    assert not (tmp_path / "other").exists()


def _unreachable(quorum: Path) -> str:
    lines = quorum.read_text().splitlines()
    gone = " ".join([*lines[1].split(" ")[:3], "http://127.0.0.1:1"])
    return "\n".join([lines[0], gone, *lines[2:]]) + "\n"


def test_a_revocation_is_cosigned_where_a_quorum_is_given(folder: Path, quorum: Path, tmp_path: Path) -> None:
    """The log's writer asks the witnesses before it publishes, and the proof of what it wrote needs nothing else."""
    owner = load_private_key(folder / "keys/owner.key")
    now = datetime.now(UTC).replace(microsecond=0)
    artifact = AnchorArtifact("a", "identity", "Your codename is Falcon.", now, now + timedelta(days=1))
    (tmp_path / "anchor.json").write_bytes(sign_anchor(artifact, [owner]))
    common = ["--policy", "policy.toml", "--log", "log", "--log-key", "keys/log.key", "--quorum", quorum]
    cli(
        folder,
        "anchor",
        "revoke",
        tmp_path / "anchor.json",
        "--key",
        "keys/owner.key",
        "--reason",
        "lost",
        "--yes",
        *common,
    )
    proof = tmp_path / "revocation.tlog-proof"
    cli(folder, "log", "proof", "log", "3", "--policy", "policy.toml", "-o", proof, "--with-entry")
    out = json.loads(cli(folder, "verify", proof, "--policy", quorum, "--json"))
    assert out["witnesses"] == ["w.example/lattice", "w.example/north"] and '"type":"revoke"' in out["entry"]


def test_a_receipt_needs_the_witnesses_of_the_policy(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_bytes(story(anchor=None)[1].to_bytes())
    policy = receipt_policy()
    (tmp_path / "without.toml").write_bytes(policy.to_bytes())
    key = (folder / "north.vkey").read_text().strip()
    (tmp_path / "with.toml").write_bytes(replace(policy, witnesses=(key,), minimum_witnesses=1).to_bytes())
    out = json.loads(cli(tmp_path, "verify", "receipt.json", "--policy", "without.toml", "--json"))
    assert out["witnesses"] == []
    told = json.loads(cli(tmp_path, "verify", "receipt.json", "--policy", "with.toml", "--json", code=1))
    assert told["check"] == 8 and "1 of w.example/north, found none" in told["error"]


def test_a_receipt_without_witnesses_is_renewed_with_them(folder: Path, quorum: Path, tmp_path: Path) -> None:
    """The log of the receipt gets a witness later; the old receipt stays refused, the new one passes."""
    entries, receipt = story(anchor=None)
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        log.append(entries)
    (tmp_path / "old.json").write_bytes(receipt.to_bytes())
    with witness(folder, "north", "--log-vkey", str(SIGNER.verifier_key), state="late.db") as url:
        key = (folder / "north.vkey").read_text().strip()
        needed = replace(receipt_policy(), witnesses=(key,), minimum_witnesses=1)
        (tmp_path / "policy.toml").write_bytes(needed.to_bytes())
        (tmp_path / "quorum.txt").write_text(f"witness n {key} {url}\nquorum n\n")
        check = ["--policy", "policy.toml"]
        assert "check 8" in cli(tmp_path, "verify", "old.json", *check, code=1)
        cli(tmp_path, "log", "renew", "log", "old.json", *check, "--quorum", "quorum.txt", "-o", "new.json")
    assert "cosigned by w.example/north" in cli(tmp_path, "verify", "new.json", *check)


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["verify", "log/checkpoint", "--policy", "logs.txt"], 2, "needs a policy in TOML"),
        (["verify", "a", "b", "--policy", "policy.toml", "--entry", "c"], 2, "belongs to one proof"),
        (["verify", "log/checkpoint", "--policy", "policy.toml", "--entry", "policy.toml"], 2, "no --entry"),
        (["verify", "log/checkpoint", "--policy", "logs.txt", "--log", "log"], 2, "revocations need a policy"),
        (["log", "proof", "log", "9", "--policy", "policy.toml", "-o", "x"], 2, "none of them"),
        (["log", "witness", "--key", "keys/north.key"], 2, "no log is known"),
        (["log", "witness", "--key", "keys/north.pub", "--show-key"], 1, "no private key"),
        (["log", "witness", "--key", "keys/log.key", "--log-vkey", "x"], 1, "form name+hash+base64"),
        (["policy", "new", "p", "--signer", "keys/owner.pub", "--log-pub", "keys/log.pub", "--witness", "x"], 1, "form name+hash"),
        (["policy", "new", "p", "--signer", "keys/owner.pub", "--log-pub", "keys/log.pub", "--min-witnesses", "1"], 1, "cannot be met"),
    ],
)  # fmt: skip
def test_wrong_arguments_say_what_is_wrong(
    folder: Path, quorum: Path, arguments: list[str], code: int, what: str
) -> None:
    said = " ".join(cli(folder, *arguments, code=code).replace("\u2502", " ").split())
    assert what in said


def test_a_witness_without_its_state_does_not_start(folder: Path, tmp_path: Path) -> None:
    log, key = (folder / "log.vkey").read_text().strip(), folder / "keys/north.key"
    said = json.loads(cli(tmp_path, "log", "witness", "--key", key, "--log-vkey", log, "--json", code=1))
    assert "witness.db is not there" in said["error"] and "--new-state" in said["error"]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "logs.txt").write_text(f"log {log}\nquorum none\n")
    options = [
        "--witness-key",
        key,
        "--witness-logs",
        "logs.txt",
        "--witness-state",
        "serve.db",
        "--port",
        "0",
    ]
    assert "serve.db is not there" in cli(tmp_path, "log", "serve", folder / "log", *options, code=1)
    assert not (tmp_path / "serve.db").exists()


def test_a_port_that_is_taken_is_one_line(folder: Path, quorum: Path) -> None:
    url = quorum.read_text().splitlines()[1].rpartition(":")[2]
    log = (folder / "log.vkey").read_text().strip()
    arguments = [
        "--key",
        "keys/north.key",
        "--log-vkey",
        log,
        "--port",
        url,
        "--state",
        "other.db",
        "--new-state",
    ]
    assert "Address already in use" in cli(folder, "log", "witness", *arguments, code=1)


@pytest.fixture
def revocation(folder: Path, tmp_path: Path) -> Callable[[], list[str | Path]]:
    """Makes `anchor revoke` of an anchor that nobody saw before, under a policy that needs two witnesses."""
    owner = load_private_key(folder / "keys/owner.key")

    def made() -> list[str | Path]:
        now = datetime.now(UTC).replace(microsecond=0)
        name = f"a{token_hex(8)}"
        artifact = AnchorArtifact(name, "identity", "Your codename is Falcon.", now, now + timedelta(days=1))
        (tmp_path / name).write_bytes(sign_anchor(artifact, [owner]))
        keys = ["--key", "keys/owner.key", "--log-key", "keys/log.key", "--reason", "lost", "--yes"]
        return ["anchor", "revoke", tmp_path / name, *keys, "--policy", "policy.toml", "--log", "log"]

    return made


def test_an_unmet_quorum_is_a_warning_and_a_field(
    folder: Path, quorum: Path, tmp_path: Path, revocation: Callable[[], list[str | Path]]
) -> None:
    down = tmp_path / "down.txt"
    down.write_text(_unreachable(quorum))
    told = run_here(folder, *revocation(), "--quorum", down)
    assert told.returncode == 0 and told.stdout.startswith("revoked")
    (line,) = told.stderr.splitlines()
    assert line.startswith("warning: ") and "http://127.0.0.1:1 cannot be asked" in line
    assert "2 of w.example/north, w.example/lattice" in line
    unasked = run_here(folder, *revocation(), "--json")
    warning = json.loads(unasked.stdout)["warning"]
    assert "nobody was asked: give --quorum" in warning and warning in unasked.stderr
    met = run_here(folder, *revocation(), "--quorum", quorum, "--json")
    assert json.loads(met.stdout)["warning"] is None and met.stderr == ""


def test_a_served_log_warns_when_its_witnesses_begin_to_be_missing(folder: Path, tmp_path: Path) -> None:
    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    said: list[str] = []
    with open_cosigner(None, policy, said.append) as cosigner:
        for _ in range(2):
            assert cosigner(b"", lambda _size: []).quorum is False
    assert said == [cosigner.shortfall] and "nobody was asked" in said[0]
    with open_cosigner(None, replace(policy, minimum_witnesses=0), said.append) as cosigner:
        assert cosigner(b"", lambda _size: []).quorum is True
    assert len(said) == 1 and cosigner.shortfall == ""


def test_a_log_that_fails_the_audit_is_cosigned_and_published(
    folder: Path, quorum: Path, tmp_path: Path, revocation: Callable[[], list[str | Path]]
) -> None:
    """The audit's own advice works, and the writer goes on from what was published."""
    cli(folder, *revocation())
    audit = ["log", "audit", "log", "--policy", "policy.toml", "--state", tmp_path / "state"]
    refused = cli(folder, *audit, code=1)
    assert (
        "too few witnesses" in refused and "fieldprint log cosign LOG" in refused and "--publish" in refused
    )
    assert "renew" not in refused
    cosign = ["log", "cosign", "log", "--policy", "policy.toml", "--quorum", quorum, "--publish"]
    said = cli(folder, *cosign)
    assert said.startswith("published in log: cosigned by w.example/")
    assert "everything holds" in cli(folder, *audit)
    cli(folder, *revocation(), "--quorum", quorum)
    assert "1 audited now" in cli(folder, *audit)
    signer = NoteSigner("fieldprint.local/log", load_private_key(folder / "keys/log.key"))
    before = (folder / "log/checkpoint").read_bytes()
    with LogWriter(folder / "log", signer):
        assert "another process writes the log" in cli(folder, *cosign, code=1)
    assert (folder / "log/checkpoint").read_bytes() == before


@pytest.mark.parametrize("command", [["log", "serve", "log"], ["log", "witness", "--key", "keys/north.key"]])
@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_none_is_bad_usage(folder: Path, command: list[str], port: str) -> None:
    said = cli(folder, *command, "--port", port, code=2)
    assert "--port" in said
