"""`fieldprint override` as an operator uses it, and what an engine that looks at the file does."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fieldprint.anchor import AnchorArtifact, Policy, load_private_key, sign_anchor
from fieldprint.registry.orders import OrdersFile
from tests.commands import run_here, run_process
from tests.registry.world import override

POLICY = ("--policy", "policy.toml")
FILE = ("--orders", "orders")
WARDEN = ("--key", "keys/warden.key", *POLICY, *FILE)
LOG = ("--log", "log", "--log-key", "keys/log.key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("owner", "warden", "log"):
        assert run_here(tmp_path, "keys", "new", name).returncode == 0
    ended = run_here(
        tmp_path, "policy", "new", "policy.toml", "--signer", "keys/owner.pub", "--log-pub", "keys/log.pub",
        "--override-signer", "keys/warden.pub",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert run_here(tmp_path, "log", "new", "log", "--log-key", "keys/log.key").returncode == 0
    return tmp_path


def ordered(folder: Path, *arguments: str) -> dict[str, Any]:
    ended = run_here(folder, "override", *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_an_order_is_given_listed_lifted_and_recorded(folder: Path) -> None:
    made = ordered(folder, "bypass", *WARDEN, "--kind", "identity", "--reason", "it leaks")
    assert made["recorded"] is False
    (listed,) = ordered(folder, "list", *POLICY, *FILE)["orders"]
    assert (listed["number"], listed["action"], listed["scope"]) == (made["number"], "bypass", "kind")
    assert "it leaks" in run_here(folder, "override", "list", *POLICY, *FILE).stdout
    assert ordered(folder, "record", *POLICY, *FILE, *LOG)["indices"] == [0]
    lifted = ordered(folder, "restore", str(made["number"]), *WARDEN, "--reason", "mended", *LOG)
    assert lifted["indices"] == [1]
    assert ordered(folder, "list", *POLICY, *FILE)["orders"] == []
    assert "no order" in run_here(folder, "override", "list", *POLICY, *FILE).stdout


def test_a_reason_is_no_markup_and_a_number_is_above_the_last(folder: Path) -> None:
    policy = Policy.from_bytes((folder / "policy.toml").read_bytes())
    warden = load_private_key(folder / "keys" / "warden.key")
    ahead = 2**52  # of a clock that was wrong
    OrdersFile(folder / "orders", policy).append(override(ahead, reason="[/no] markup", keys=(warden,)))
    assert "[/no] markup" in run_here(folder, "override", "list", *POLICY, *FILE).stdout
    assert ordered(folder, "freeze", *WARDEN, "--kind", "identity", "--reason", "x")["number"] == ahead + 1


def test_a_dry_run_says_the_number_that_the_order_then_has(folder: Path) -> None:
    freeze = ("freeze", *WARDEN, "--kind", "identity", "--reason", "x")
    dry = ordered(folder, *freeze, "--dry-run")
    assert (
        f"as order {dry['number']}"
        in run_here(folder, "override", *freeze, "--dry-run", "--number", str(dry["number"])).stdout
    )
    assert ordered(folder, *freeze, "--number", str(dry["number"]))["number"] == dry["number"]
    ended = run_here(folder, "override", *freeze, "--number", str(dry["number"]), "--dry-run")
    assert ended.returncode == 1 and "number" in ended.stderr
    assert ordered(folder, *freeze, "--dry-run")["number"] > dry["number"]


def test_the_log_and_the_registry_say_what_was_ordered(folder: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")
    now = datetime.now(UTC).replace(microsecond=0)
    made = AnchorArtifact("note", "memory", "Oslo is cold.", now, now + timedelta(days=1))
    (folder / "note").write_bytes(sign_anchor(made, [load_private_key(folder / "keys" / "owner.key")]))
    assert (
        run_here(folder, "anchor", "register", "note", "--key", "keys/owner.key", *POLICY, *LOG).returncode
        == 0
    )
    first = ordered(folder, "freeze", *WARDEN, "--all", "--yes", "--reason", "x", *LOG)["number"]
    ordered(folder, "restore", str(first), *WARDEN, "--reason", "over", *LOG)
    order = ordered(
        folder, "bypass", *WARDEN, "--kind", "memory", "--hours", "1", "--reason", "it leaks", *LOG
    )
    shown = " ".join(run_process(folder, "log", "show", "log", *POLICY, COLUMNS="200").stdout.split())
    assert f"a signed override: freeze everything, number {first}, until restored: x" in shown
    assert f"the signed end of override {first}: over" in shown
    words = f"bypass kind memory, number {order['number']}, until {order['expires']}: it leaks"
    assert f"a signed override: {words}" in shown
    assert run_here(folder, "registry", "sync", *POLICY, *LOG[:2]).returncode == 0
    shown = " ".join(run_process(folder, "registry", "show", made.digest, COLUMNS="200").stdout.split())
    assert words in shown


def test_an_order_stands_when_the_log_cannot_be_written(folder: Path) -> None:
    made = ordered(
        folder, "freeze", *WARDEN, "--all", "--yes", "--reason", "an alarm", "--log", "elsewhere",
        "--log-key", "keys/log.key",
    )  # fmt: skip
    assert made["recorded"] is False
    assert len(ordered(folder, "list", *POLICY, *FILE)["orders"]) == 1


def test_recording_into_a_log_that_is_not_there_fails(folder: Path) -> None:
    ordered(folder, "freeze", *WARDEN, "--engine", "north", "--reason", "an alarm")
    ended = run_here(
        folder, "override", "record", *POLICY, *FILE, "--log", "elsewhere", "--log-key", "keys/log.key"
    )
    assert ended.returncode == 1
    assert "holds no log" in ended.stderr
    assert ordered(folder, "record", *POLICY, *FILE, *LOG)["indices"] == [0]
    assert "knows every order" in run_here(folder, "override", "record", *POLICY, *FILE, *LOG).stdout


def test_a_file_of_orders_that_is_not_there_is_told(folder: Path) -> None:
    for arguments in (("list", *POLICY), ("record", *POLICY, *LOG)):
        ended = run_here(folder, "override", *arguments, "--orders", "misspelt")
        assert ended.returncode == 0
        assert "there is no file misspelt" in ended.stderr
    ended = run_here(folder, "override", "list", *POLICY, "--orders", "nowhere/orders")
    assert ended.returncode == 1
    assert "folder that is not there" in ended.stderr


def test_a_dry_run_and_a_question_that_is_not_answered_order_nothing(folder: Path) -> None:
    assert ordered(folder, "freeze", *WARDEN, "--all", "--reason", "x", "--dry-run")["dry_run"] is True
    ended = run_here(folder, "override", "freeze", *WARDEN, "--all", "--reason", "x")
    assert ended.returncode == 2
    assert "--yes" in ended.stderr
    assert not (folder / "orders").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--reason", "x"), "give one of"),
        (("--all", "--kind", "identity", "--reason", "x"), "give one of"),
        (("--anchor", "abc", "--reason", "x"), "digest"),
        (("--kind", "king", "--reason", "x"), "must be one of"),
        (("--engine", "", "--reason", "x"), "engine's name"),
        (("--all", "--yes", "--reason", "x", "--hours", "99999999999"), "--hours"),
        (("--all", "--yes", "--reason", "x", "--log", "log"), "given together"),
    ],
)
def test_a_scope_that_is_none_is_refused(folder: Path, arguments: tuple[str, ...], what: str) -> None:
    ended = run_here(folder, "override", "bypass", *WARDEN, *arguments)
    assert ended.returncode != 0
    assert what in ended.stderr
    assert not (folder / "orders").exists()


def test_a_key_that_signs_anchors_cannot_override(folder: Path) -> None:
    ended = run_here(
        folder, "override", "bypass", "--key", "keys/owner.key", *POLICY, *FILE, "--kind", "identity", "--reason", "x"
    )  # fmt: skip
    assert ended.returncode == 1
    assert "signatures" in ended.stderr
    (folder / "keys" / "other.pub").write_bytes((folder / "keys" / "owner.pub").read_bytes())
    ended = run_here(
        folder, "policy", "new", "p2.toml", "--signer", "keys/owner.pub", "--log-pub", "keys/log.pub",
        "--override-signer", "keys/other.pub",
    )  # fmt: skip
    assert ended.returncode == 1
    assert not (folder / "p2.toml").exists()


def test_lifting_what_is_not_in_force_is_refused(folder: Path) -> None:
    ended = run_here(folder, "override", "restore", "5", *WARDEN, "--reason", "x")
    assert ended.returncode == 1
    assert "no override 5 is in force" in ended.stderr


@pytest.mark.slow
def test_an_engine_that_looks_at_the_file_is_frozen_bypassed_and_restored(
    folder: Path, model_folder: Path
) -> None:
    (folder / "text.txt").write_text("You are Falcon. You live in Oslo.")
    model = ("--model", str(model_folder))
    ended = run_here(
        folder, "anchor", "sign", "text.txt", "--key", "keys/owner.key", "--out", "anchor.json", *model, *POLICY, *LOG
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    generate = ("generate", "Where do you live?", "--anchor", "anchor.json", "--max-new-tokens", "6", *POLICY, *LOG, *FILE, *model)  # fmt: skip
    frozen = ordered(folder, "freeze", *WARDEN, "--engine", "engine", "--reason", "an alarm")
    ended = run_here(folder, *generate, "--json")
    assert ended.returncode == 1
    assert "check 15 failed" in ended.stderr
    assert "an alarm" in ended.stderr
    ordered(folder, "restore", str(frozen["number"]), *WARDEN, "--reason", "over")
    ordered(folder, "bypass", *WARDEN, "--kind", "identity", "--reason", "it leaks")
    ended = run_here(folder, *generate, "--stream", "--json")
    assert ended.returncode == 0, ended.stderr
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert events[0]["event"] == "bypassed"
    assert "it leaks" in events[0]["reason"]
    (answer,) = events[-1]["answers"]
    assert answer["without_anchor"] == events[0]["reason"]
    receipt = json.loads((folder / answer["receipt"]).read_bytes())
    assert receipt["anchor"] is None
    ended = run_here(folder, *generate)
    assert "[without the anchor: " in ended.stdout
    assert "it leaks" in ended.stdout
    other = ("--key", "keys/warden.key", *POLICY, "--orders", "other", *LOG)
    ordered(folder, "freeze", *other, "--engine", "north", "--reason", "x", "--number", str(2**52))
    ordered(folder, "bypass", *WARDEN, "--engine", "south", "--reason", "y")
    ended = run_here(folder, *generate, "--json")
    assert ended.returncode == 0, ended.stderr
    assert "warning: the log refuses an order" in ended.stderr
    assert "the log refuses an order" in json.loads(ended.stdout)["warning"]
