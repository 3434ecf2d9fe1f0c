"""What commands of a log say when something is wrong: what happened, where, and what to do. No model is needed."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from fieldprint.anchor import load_private_key
from fieldprint.audit import KINDS
from fieldprint.note import NoteSigner
from fieldprint.registry import EVENT_TYPES
from fieldprint.tlog import LogWriter
from tests.commands import COMMAND, NO_ROOM, make_policy_here, run_process
from tests.commands import run_here as cli

POLICY = ("--policy", "policy.toml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, a policy and a log of three entries; no test changes them."""
    path = tmp_path_factory.mktemp("messages")
    make_policy_here(path)
    signer = NoteSigner("fieldprint.local/log", load_private_key(path / "keys/log.key"))
    with LogWriter(path / "log", signer, create=True) as log:
        log.append([b"one", b"two", b"three"])
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("log", "show", "log", "--policy", "nothing"), 2, "nothing cannot be read"),
        (("log", "show", "log"), 2, "--policy"),
        (("log", "audit", "log", *POLICY, "--nonsense"), 2, "--nonsense"),
        (("keys", "new", "Bad Name"), 2, "name must"),
        (("anchor", "sign", "text", "--key", "k", "--out", "o", "--days", "9999999999"), 2, "--days"),
        (("memory", "pack", "x", "--budget", "9", "--days", "9999999999"), 2, "--days"),
        (("log", "show", "log", "--policy", "keys/log.pub"), 1, "keys/log.pub: the policy is not TOML"),
    ],
)
def test_every_refusal_is_an_object_with_json(
    folder: Path, arguments: tuple[str, ...], code: int, what: str
) -> None:
    run = cli(folder, *arguments, "--json")
    said = json.loads(run.stdout)
    assert run.returncode == code and said.keys() == {"error", "check"} and what in said["error"]
    assert run.stderr and cli(folder, *arguments).stdout == ""


def test_an_audit_that_reaches_nobody_says_ok_false(folder: Path, tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state"))
    damaged = tmp_path / "damaged"
    damaged.write_text("{}")
    for run in (
        cli(folder, "log", "audit", str(tmp_path), *POLICY, "--state", str(damaged), "--json"),
        cli(folder, "log", "audit", "http://127.0.0.1:1/log", *POLICY, *state, "--json"),
    ):
        said = json.loads(run.stdout)
        assert run.returncode == 1 and (said["ok"], said["check"]) == (False, None)
        assert said["error"] in run.stderr


def test_entries_of_every_type_are_counted_in_every_audit(folder: Path, tmp_path: Path) -> None:
    arguments = ("log", "audit", "log", *POLICY, "--state", str(tmp_path / "state"), "--json")
    first, again = (json.loads(cli(folder, *arguments).stdout)["entries"] for _ in range(2))
    assert first == again == dict.fromkeys(KINDS, 0) | {"other": 3}
    assert set(KINDS) == {*EVENT_TYPES, "commitment", "abort", "other"}


def test_an_interrupted_audit_says_how_far_it_came(folder: Path, tmp_path: Path) -> None:
    interrupt = (
        "import fieldprint.audit as a; run = a.Audit.run\n"
        "def stopped(self):\n"
        "    for position in run(self):\n"
        "        yield position\n"
        "        raise KeyboardInterrupt\n"
        "a.Audit.run = stopped\n"
    )
    arguments = ("log", "audit", "log", *POLICY, "--state", str(tmp_path / "state"))
    run = run_process(folder, *arguments, "--json", before=interrupt)
    said = json.loads(run.stdout)
    assert run.returncode == 130 and "stopped at 3 of 3" in run.stderr
    assert (said["ok"], said["check"], said["position"]) == (False, None, 3) and "stopped at" in said["error"]
    text = run_process(folder, *arguments, "--restart", before=interrupt)
    assert text.returncode == 130 and "stopped at 3 of 3" in text.stderr and text.stdout == ""


def test_a_file_that_could_not_be_written_does_not_block_the_next_try(folder: Path, tmp_path: Path) -> None:
    made = {
        "keys": ("keys", "new", "y", "--folder", str(tmp_path)),
        "policy": (
            *("policy", "new", str(tmp_path / "p.toml")),
            *("--signer", "keys/owner.pub", "--log-pub", "keys/log.pub"),
        ),
        "proof": ("log", "proof", "log", "0", *POLICY, "-o", str(tmp_path / "p")),
    }
    for arguments in made.values():
        full = run_process(folder, *arguments, before=NO_ROOM.format(16))
        assert full.returncode == 1 and "cannot be written: File too large" in full.stderr
        assert str(tmp_path) in full.stderr and list(tmp_path.iterdir()) == []
    half = run_process(folder, *made["keys"], before=NO_ROOM.format(115))  # the private key has 119 bytes
    assert half.returncode == 1 and list(tmp_path.iterdir()) == []
    for arguments in made.values():
        assert cli(folder, *arguments).returncode == 0


def test_what_cannot_be_listened_on_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = cli(folder, "log", "serve", "log", "--port", port)
    assert (
        run.returncode == 1
        and f"127.0.0.1:{port} cannot be listened on: Address already in use" in run.stderr
    )
    unknown = cli(folder, "log", "serve", "log", "--host", "no.such.host.invalid", "--port", "0")
    assert unknown.returncode == 1 and "no.such.host.invalid:0 cannot be listened on" in unknown.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_ended_says_stopped(folder: Path, number: int) -> None:
    command = [*COMMAND, "log", "serve", "log", "--port", "0"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and "read-only" in process.stdout.readline()
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0 and told == "stopped\n"


def test_a_log_of_another_name_or_key_is_named(folder: Path, tmp_path: Path) -> None:
    origin = ("--origin", "log.example/fieldprint")
    made = cli(tmp_path, "log", "new", "other", "--log-key", str(folder / "keys/log.key"), *origin)
    name, digest, _ = made.stdout.strip().split("+", 2)
    for command in (("log", "audit"), ("log", "show")):
        run = cli(folder, *command, str(tmp_path / "other"), *POLICY)
        assert run.returncode == 1 and f"it is signed by {name}+{digest}, " in run.stderr
        assert "and trusted is fieldprint.local/log+" in run.stderr
    keys = ("--signer", "keys/owner.pub", "--log-pub", "keys/log.pub")
    policy = str(tmp_path / "named.toml")
    assert cli(folder, "policy", "new", policy, *keys, *origin).returncode == 0
    state = ("--state", str(tmp_path / "state"))
    assert cli(folder, "log", "audit", str(tmp_path / "other"), "--policy", policy, *state).returncode == 0


@contextmanager
def without(root: Path, missing: str) -> Iterator[str]:
    """A mirror of a log that lacks a file."""

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = root / self.path[1:]
            found = self.path[1:] != missing and file.is_file()
            data = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["tile/entries/000.p/3", "tile/0/000.p/3"])
def test_a_missing_file_is_named_as_the_tree_needs_it(folder: Path, name: str) -> None:
    with without(folder / "log", name) as url:
        run = cli(folder, "log", "show", url, *POLICY)
    assert run.returncode == 1 and f"{url}/{name} cannot be read: it is not there" in run.stderr
    assert "a mirror incomplete" in run.stderr and "place of a log" not in run.stderr


def test_a_damaged_proof_is_told_from_a_receipt(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "one.tlog-proof"
    assert cli(folder, "log", "proof", "log", "0", *POLICY, "-o", str(proof), "--with-entry").returncode == 0
    proof.write_bytes(b"x" + proof.read_bytes())
    run = cli(folder, "verify", str(proof), *POLICY)
    assert run.returncode == 1 and "check 1 failed" in run.stderr
    assert (
        "neither a receipt, which is JSON, nor a proof, whose first line is c2sp.org/tlog-proof@v1"
        in run.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("log", "audit", "ftp://x/y", *POLICY), "ftp://x/y is of no object store"),
        (("log", "show", "ftp://x/y", *POLICY), "ftp://x/y is of no object store"),
        (("log", "audit", "http://127.0.0.1:1/l", *POLICY, "--timeout", "-1"), "--timeout"),
        (("log", "cosign", "http://127.0.0.1:1/l", *POLICY, "--quorum", "q", "--publish"), "own folder"),
    ],
)
def test_what_no_log_can_be_is_bad_usage(folder: Path, arguments: tuple[str, ...], what: str) -> None:
    run = cli(folder, *arguments)
    assert run.returncode == 2 and what in run.stderr


def test_a_log_that_is_not_there_says_how_to_make_one(folder: Path, tmp_path: Path) -> None:
    keys = ("--log-key", "keys/log.key", *POLICY)
    run = cli(folder, "log", "adopt", str(tmp_path / "nowhere"), *keys)
    assert run.returncode == 1 and "fieldprint log new" in run.stderr


def test_the_version_is_printed(tmp_path: Path) -> None:
    run = cli(tmp_path, "--version")
    assert run.returncode == 0 and run.stdout == f"fieldprint {metadata.version('fieldprint')}\n"
