"""The command line: the main path as a user walks it, and what bad input gets."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import AnchorArtifact, Envelope, load_private_key, sign_anchor
from tests.commands import COMMAND, NO_ROOM, done, make_policy_here, run_process
from tests.commands import run_here as cli

torch = pytest.importorskip("torch")

from fieldprint.promote import Fieldprint  # noqa: E402

BRAINPOOL = """\
-----BEGIN PRIVATE KEY-----
MGQCAQAwFAYHKoZIzj0CAQYJKyQDAwIIAQEBBEkwRwIBAQQUm/2yBn6EU1cBetyv
R73zBCCCJNWhLAMqAAQ03SMJMu/VjZiADSuNi/7sFb8e+9Kk2xllYABRHEG810Ru
CHVkQITs
-----END PRIVATE KEY-----
"""  # a curve that `cryptography` names and does not support


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Keys, policy, log and a signed anchor that is registered there."""
    path = tmp_path_factory.mktemp("cli")
    make_policy_here(path)
    done(path, "log", "new", "log", "--log-key", "keys/log.key")
    (path / "text.txt").write_text("Your codename is Falcon. You live in Oslo.\n")
    done(
        path,
        "anchor",
        "sign",
        "text.txt",
        "--key",
        "keys/owner.key",
        "--out",
        "a.json",
        "--fieldprint-out",
        "a.fp",
        *WRITE,
    )
    spoil(path)
    done(path, "anchor", "register", "unrealized.json", "--key", "keys/owner.key", *WRITE)
    return path


def spoil(path: Path) -> None:
    """Files that a user might bring by mistake or an attacker on purpose."""
    owner = load_private_key(path / "keys/owner.key")
    good = AnchorArtifact.from_bytes(Envelope.from_bytes((path / "a.json").read_bytes()).payload)
    (record,) = good.fieldprints
    day = timedelta(days=1)
    made = {
        "expired.json": replace(good, not_before=good.not_before - 2 * day, not_after=good.not_before - day),
        "elsewhere.json": replace(good, fieldprints=(replace(record, model="ab" * 32),)),
        "unrealized.json": replace(good, fieldprints=(replace(record, root="cd" * 32),)),
    }
    for name, artifact in made.items():
        (path / name).write_bytes(sign_anchor(artifact, [owner]))
    (path / "stolen.json").write_bytes(sign_anchor(good, [Ed25519PrivateKey.generate()]))
    (path / "cut.json").write_bytes((path / "a.json").read_bytes()[:-40])
    (path / "cut.fp").write_bytes((path / "a.fp").read_bytes()[:-1])
    done(path, "keys", "new", "second")
    (path / "copy").mkdir()
    (path / "copy/owner.pub").write_bytes((path / "keys/second.pub").read_bytes())
    (path / "curve.key").write_text(BRAINPOOL)
    (path / "curve.key").chmod(0o600)
    (path / "long.txt").write_text("You may do nothing at all. " * 200)
    signers = ("--signer", "keys/owner.pub", "--signer", "keys/second.pub")
    done(path, "policy", "new", "two.toml", *signers, "--threshold", "2", "--log-pub", "keys/log.pub")
    (path / "empty-model").mkdir()
    (path / "empty-model/config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')


COMMON = ("--policy", "policy.toml", "--log", "log")
WRITE = (*COMMON, "--log-key", "keys/log.key")
AT_L = ("--key", "keys/owner.key", "--out", "l.json")


def test_the_main_path(folder: Path) -> None:
    shown = json.loads(done(folder, "anchor", "show", "a.json"))
    assert shown["text"].startswith("Your codename") and shown["verified"] is False
    assert "verified: identity anchor, signed by owner" in done(folder, "anchor", "verify", "a.json", *COMMON)
    promoted = json.loads(done(folder, "promote", "a.json", *COMMON, "--fieldprint", "a.fp", "--json"))
    assert promoted["root"] == shown["fieldprints"][0]["root"]
    arguments = (
        "generate",
        "What is your codename?",
        "Hi.",
        "--anchor",
        "a.json",
        *WRITE,
        "--max-new-tokens",
        "12",
        "--g",
        "0.1",
    )
    generated = run_process(folder, *arguments, "--json")
    assert generated.returncode == 0, generated.stderr
    report = json.loads(generated.stdout)
    assert len(report["answers"]) == 2 and report["tokens_per_second"] > 0
    for answer in report["answers"]:
        verified = json.loads(done(folder, "verify", answer["receipt"], *COMMON, "--json"))
        assert verified["text"] == answer["text"] and verified["anchor"] == shown["digest"]
    both = [answer["receipt"] for answer in report["answers"]]
    checked = run_process(folder, "verify", *both, "--policy", "policy.toml").stdout
    assert checked.count("verified:") == 2 and checked.count("revocation not checked") == 2
    entries = json.loads(done(folder, "log", "show", "log", "--policy", "policy.toml", "--json"))["entries"]
    assert {e["type"] for e in entries} >= {"promote", "commitment"}
    doctored = (
        Path(folder / report["answers"][0]["receipt"]).read_bytes().replace(b'"text":"', b'"text":"No. ', 1)
    )
    (folder / "doctored.json").write_bytes(doctored)
    refused = cli(folder, "verify", "doctored.json", "--policy", "policy.toml", "--json")
    assert json.loads(refused.stdout)["check"] == 6
    assert refused.returncode == 1 and "check 6 failed" in refused.stderr


def test_an_anchor_for_both_engines_has_a_fieldprint_and_a_file_for_each(folder: Path) -> None:
    sign = ("anchor", "sign", "text.txt", "--key", "keys/owner.key", "--json")
    both = ("--engine", "vllm", "--engine", "fieldprint", "--fieldprint-out", "both.fp")
    said = json.loads(done(folder, *sign, "--out", "both.json", *both, *WRITE))
    assert said["forms"] == ["chat-system", "chat-system-before"]
    assert said["fieldprint_files"] == ["both.fp", "both-vllm.fp"]
    own, front = json.loads(done(folder, "anchor", "show", "both.json"))["fieldprints"]
    assert (own["form"], front["form"]) == ("chat-system", "chat-system-before")
    assert (said["root"], said["tokens"]) == (own["root"], own["num_tokens"])
    assert front["num_tokens"] % 32 == 0 and front["model"] == own["model"]
    assert [Fieldprint.load(folder / name).root() for name in said["fieldprint_files"]] == [
        own["root"],
        front["root"],
    ]
    promote = ("promote", "both.json", *COMMON, "--json", "--fieldprint")
    assert json.loads(done(folder, *promote, "both.fp"))["root"] == own["root"]
    assert "check 4 failed" in cli(folder, *promote, "both-vllm.fp").stderr
    alone = ("--engine", "vllm", "--fieldprint-out", "alone.fp")
    said = json.loads(done(folder, *sign, "--out", "alone.json", *alone, *WRITE))
    assert said["forms"] == ["chat-system-before"] and said["fieldprint_files"] == ["alone.fp"]
    assert said["root"] == front["root"] == Fieldprint.load(folder / "alone.fp").root()
    refused = cli(folder, "promote", "alone.json", *COMMON)
    assert "check 10 failed" in refused.stderr and "--engine fieldprint --engine vllm" in refused.stderr


def test_the_stream_says_what_is_final(folder: Path) -> None:
    """What is committed, piece by piece, is the answer; the last line is the report."""
    arguments = ("generate", "What is your codename?", "Hi.", *WRITE, "--max-new-tokens", "8")
    *events, report = map(json.loads, done(folder, *arguments, "--stream", "--json").splitlines())
    assert report["event"] == "report"
    for number, answer in enumerate(report["answers"]):
        own = [event for event in events if event["request"] == number]
        assert own[-1]["event"] == "finished" and own[-1]["text"] == answer["text"]
        for kind in ("provisional", "committed"):
            assert "".join(e["text"] for e in own if e["event"] == kind) == answer["text"]
        assert len([e for e in own if e["event"] == "provisional"]) == answer["tokens"]
    piped = done(folder, *arguments, "--stream")  # no terminal: what is final, and nothing else
    assert report["answers"][0]["text"] in piped and "event" not in piped and "\x1b" not in piped


def test_revocation_refuses_the_next_request(folder: Path) -> None:
    (folder / "other.txt").write_text("Your codename is Heron.\n")
    done(folder, "anchor", "sign", "other.txt", "--key", "keys/owner.key", "--out", "b.json")
    done(
        folder,
        "anchor",
        "revoke",
        "b.json",
        "--key",
        "keys/owner.key",
        *WRITE,
        "--reason",
        "it was a test",
        "--yes",
    )
    refused = cli(folder, "generate", "Hi.", "--anchor", "b.json", *WRITE)
    assert (
        refused.returncode == 1 and "check 8 failed" in refused.stderr and "it was a test" in refused.stderr
    )
    assert "Traceback" not in refused.stderr
    done(folder, "keys", "new", "stranger")
    refused = cli(
        folder, "anchor", "revoke", "a.json", "--key", "keys/stranger.key", *WRITE, "--reason", "no"
    )
    assert refused.returncode == 1 and "0 of 1 needed signatures for revocation" in refused.stderr


def test_an_anchor_is_registered_before_anything_is_generated_under_it(folder: Path) -> None:
    (folder / "third.txt").write_text("Your codename is Swift.\n")
    signed = json.loads(
        done(folder, "anchor", "sign", "third.txt", "--key", "keys/owner.key", "--out", "c.json", "--json")
    )
    refused = cli(folder, "generate", "Hi.", "--anchor", "c.json", *WRITE)
    assert refused.returncode == 1 and "check 11 failed" in refused.stderr
    assert "fieldprint anchor register" in refused.stderr
    by_stranger = cli(folder, "anchor", "register", "c.json", "--key", "keys/second.key", *WRITE)
    assert by_stranger.returncode == 1 and "signatures" in by_stranger.stderr
    size = len(json.loads(done(folder, "log", "show", "log", "--policy", "policy.toml", "--json"))["entries"])
    owner = ("--key", "keys/owner.key")
    registered = json.loads(done(folder, "anchor", "register", "c.json", *owner, *WRITE, "--json"))
    assert registered == {"anchor": signed["anchor"], "index": size, "warning": None}
    again = cli(folder, "anchor", "register", "c.json", *owner, *WRITE)
    assert again.returncode == 1 and "already-registered" in again.stderr
    done(folder, "anchor", "verify", "c.json", *COMMON)
    entries = [path.read_bytes() for path in (folder / "log/tile/entries").rglob("*") if path.is_file()]
    assert entries and not any(b"Swift" in data for data in entries)
    half = cli(folder, "anchor", "sign", "third.txt", *owner, "--out", "d.json", *COMMON)
    assert half.returncode == 2 and "belong together" in half.stderr and not (folder / "d.json").exists()


def test_two_processes_on_one_log(folder: Path) -> None:
    from fieldprint.anchor import Policy, load_private_key
    from fieldprint.note import NoteSigner
    from fieldprint.tlog import LogWriter

    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    signer = NoteSigner(policy.log_key.name, load_private_key(folder / "keys/log.key"))
    with LogWriter(folder / "log", signer):
        refused = run_process(folder, "generate", "Hi.", *WRITE)
    assert refused.returncode == 1 and "another process writes the log" in refused.stderr


def test_ctrl_c_commits_what_is_there(folder: Path) -> None:
    arguments = [
        "generate",
        "Tell me a very long story.",
        "--anchor",
        "a.json",
        *WRITE,
        "--max-new-tokens",
        "4000",
        "--json",
    ]
    before = len(list((folder / "receipts").glob("*"))) if (folder / "receipts").exists() else 0
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log_size = (folder / "log/checkpoint").read_text().splitlines()[1]
    for _ in range(600):
        time.sleep(0.1)
        if int((folder / "log/checkpoint").read_text().splitlines()[1]) > int(log_size) + 2:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    answer = json.loads(out)["answers"][0]
    assert answer["reason"] == "interrupted" and answer["tokens"] < 4000
    assert len(list((folder / "receipts").glob("*"))) == before + 1
    done(folder, "verify", answer["receipt"], *COMMON)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("verify", "missing.json", "--policy", "policy.toml"), 2, "cannot be read"),
        (("anchor", "verify", "a.json", "--policy", "text.txt"), 1, "not TOML"),
        (("generate", "hi", *COMMON, "--log-key", "keys/owner.key"), 1, "not the log key"),
        (("generate", "hi", *WRITE, "--model", "nowhere"), 1, "nowhere"),
        (("generate", "hi", *WRITE, "--dtype", "int3"), 2, "dtype"),
        (("generate", "hi", *WRITE, "--g", "0.5"), 2, "no anchor"),
        (("generate", "hi", "--anchor", "a.json", *WRITE, "--g", "7"), 2, "g must"),
        (("keys", "new", "owner"), 1, "not overwritten"),
        (("keys", "new", "Bad Name"), 2, "name must"),
        (("keys", "new", "x", "--folder", "/proc/none"), 1, "/proc/none"),
        (("generate", "hi", *WRITE, "--receipts", "text.txt"), 1, "text.txt"),
        (("generate", "hi", *COMMON, "--log-key", "curve.key"), 1, "holds no"),
        (
            (
                "policy",
                "new",
                "n.toml",
                "--signer",
                "keys/owner.pub",
                "--signer",
                "copy/owner.pub",
                "--log-pub",
                "keys/log.pub",
            ),
            2,
            "same name",
        ),
        (
            (
                "policy",
                "new",
                "n.toml",
                "--signer",
                "keys/owner.pub",
                "--log-pub",
                "keys/log.pub",
                "--origin",
                "a b",
            ),
            1,
            "no key name",
        ),
        (("log", "show", "keys", "--policy", "policy.toml"), 1, "cannot be read"),
        (("no-such-command",), 2, "No such command"),
        (("promote", "a.json", *COMMON, "--fieldprint", "text.txt"), 1, "not a fieldprint file"),
        (("promote", "a.json", *COMMON, "--fieldprint", "cut.fp"), 1, "not a fieldprint file"),
        (("anchor", "verify", "a.json", "--policy", "two.toml"), 1, "check 4 failed: 1 of 2 needed"),
        (("generate", "hi", *WRITE, "--grace", "5"), 2, "--database"),
        (("generate", "hi", *WRITE, "--grace", "-1", "--database", "x"), 2, "--grace"),
        (("generate", "hi", "--anchor", "cut.json", *WRITE), 1, "check 1 failed"),
        (("generate", "hi", "--anchor", "stolen.json", *WRITE), 1, "check 4 failed"),
        (("generate", "hi", "--anchor", "expired.json", *WRITE), 1, "check 6 failed: the anchor expired"),
        (("generate", "hi", "--anchor", "elsewhere.json", *WRITE), 1, "check 10 failed"),
        (("generate", "hi", "--anchor", "unrealized.json", *WRITE), 1, "check 4 failed: the fieldprint has"),
        (("anchor", "sign", "long.txt", "--key", "keys/owner.key", "--out", "l.json"), 1, "possible"),
        (("anchor", "sign", "text.txt", *AT_L, "--engine", "tgi"), 2, "not one of 'fieldprint', 'vllm'"),
        (("anchor", "sign", "text.txt", *AT_L, "--form", "raw-before"), 2, "--form raw --engine vllm"),
        (("anchor", "sign", "text.txt", *AT_L, "--form", "chat-user"), 1, "'chat-user' is not known"),
        (("generate", "hi", *WRITE, "--model", "empty-model"), 1, "tokenizer"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_clear_line(folder: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    process = cli(folder, *arguments)
    assert process.returncode == code, process.stderr
    assert text in " ".join(process.stderr.replace("│", " ").split()), process.stderr
    assert "Traceback" not in process.stderr


def test_generating_without_the_witnesses_of_the_policy_is_a_warning(folder: Path) -> None:
    done(folder, "keys", "new", "north")
    vkey = done(folder, "log", "witness", "--key", "keys/north.key", "--show-key").strip()
    keys = ("--signer", "keys/owner.pub", "--log-pub", "keys/log.pub", "--witness", vkey)
    done(folder, "policy", "new", "witnessed.toml", *keys)
    (folder / "quorum.txt").write_text(f"witness north {vkey} http://127.0.0.1:1\nquorum north\n")
    log = ("--log", "log", "--log-key", "keys/log.key", "--quorum", "quorum.txt", "--max-new-tokens", "1")
    made = cli(folder, "generate", "Hi.", "--policy", "witnessed.toml", *log, "--json")
    report = json.loads(made.stdout)
    assert made.returncode == 0 and f"warning: {report['warning']}" in made.stderr
    assert "http://127.0.0.1:1 cannot be asked" in report["warning"]
    receipt = report["answers"][0]["receipt"]
    refused = cli(folder, "verify", receipt, "--policy", "witnessed.toml")
    assert refused.returncode == 1 and "check 8 failed" in refused.stderr


def test_a_full_disk_loses_nothing(folder: Path) -> None:
    """A limit on file size makes the log's writes fail for real; the log stays valid."""
    before = (folder / "log/checkpoint").read_bytes()
    arguments = ("generate", "Hi.", "--anchor", "a.json", *WRITE, "--max-new-tokens", "8")
    process = run_process(folder, *arguments, before=NO_ROOM.format(64))
    assert process.returncode == 1 and "cannot be written" in process.stderr
    assert (folder / "log/checkpoint").read_bytes() == before
    done(folder, "log", "show", "log", "--policy", "policy.toml", "--json")


def test_the_base_install_says_what_generating_needs(folder: Path) -> None:
    process = run_process(folder, "generate", "Hi.", *WRITE, before="import sys; sys.modules['torch'] = None")
    assert process.returncode == 1 and "pip install 'fieldprint[demo]'" in process.stderr, process.stderr
    assert "Traceback" not in process.stderr


def test_hostile_entries_of_a_log_are_shown_and_steer_nothing(folder: Path) -> None:
    from fieldprint.anchor import Policy
    from fieldprint.note import NoteSigner
    from fieldprint.tlog import LogWriter

    done(folder, "log", "new", "odd", "--log-key", "keys/log.key")
    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    entries = [
        b'{"type":"commitment"}',
        b"[" * 60_000,
        b'{"type":"[/x]"}',
        b'{"index":77,"type":"\\u001b[31m"}',
        b'{"page":[1],"request":{},"type":"commitment"}',
        b"\xff\x00",
    ]
    signer = NoteSigner(policy.log_key.name, load_private_key(folder / "keys/log.key"))
    with LogWriter(folder / "odd", signer) as log:
        log.append(entries)
    shown = done(folder, "log", "show", "odd", "--policy", "policy.toml")
    assert "\x1b" not in shown and "[/x]" in shown
    rows = json.loads(done(folder, "log", "show", "odd", "--policy", "policy.toml", "--json"))["entries"]
    assert [row["index"] for row in rows] == list(range(6))


def test_private_keys_are_0600(folder: Path) -> None:
    assert os.stat(folder / "keys/owner.key").st_mode & 0o777 == 0o600
