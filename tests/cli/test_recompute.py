"""`fieldprint audit recompute`: an honest receipt, one of an engine that drew otherwise than it says, and what is no receipt."""

import json
from pathlib import Path

import pytest

from tests.commands import done, make_policy_here
from tests.commands import run_here as cli

torch = pytest.importorskip("torch")

from fieldprint.generate.sampling import Sampler  # noqa: E402

LOG = ("--policy", "policy.toml", "--log", "log", "--log-key", "keys/log.key")
POLICY = ("--policy", "policy.toml")
NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Keys, policy, log and a signed anchor that is registered there."""
    path = tmp_path_factory.mktemp("recompute")
    make_policy_here(path)
    done(path, "log", "new", "log", "--log-key", "keys/log.key")
    (path / "text.txt").write_text("Your codename is Falcon. You live in Oslo.\n")
    done(path, "anchor", "sign", "text.txt", "--key", "keys/owner.key", "--out", "a.json", *LOG)
    return path


def generated(folder: Path, name: str, *options: str) -> Path:
    """The receipt of one answer."""
    given = ("--receipts", name, "--max-new-tokens", str(NEW), *options)
    done(folder, "generate", "Where do you live?", "--anchor", "a.json", *LOG, *given)
    (receipt,) = (folder / name).glob("*.receipt.json")
    return receipt


@pytest.mark.parametrize("options", [(), ("--temperature", "0.8", "--seed", "3", "--g", "0.2")])
def test_an_honest_receipt_is_ok(options: tuple[str, ...], folder: Path) -> None:
    receipt = generated(folder, f"honest{len(options)}", *options)
    assert done(folder, "audit", "recompute", receipt, *POLICY).startswith("OK: ")
    said = json.loads(done(folder, "audit", "recompute", receipt, *POLICY, "--log", "log", "--json"))
    assert said["verdict"] == "OK" and said["tokens"] <= NEW and said["anchor"] is not None


def test_a_token_that_the_model_does_not_give_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []

    def second_at_the_fourth(self: Sampler, logits: "torch.Tensor", position: int) -> int:
        draws.append(position)
        return int(logits.topk(2).indices[1 if len(draws) == 4 else 0])

    with monkeypatch.context() as patched:
        patched.setattr(Sampler, "draw", second_at_the_fourth)
        receipt = generated(folder, "lying")
    assert done(folder, "verify", receipt, *POLICY).startswith("verified")
    ended = cli(folder, "audit", "recompute", receipt, *POLICY, "--json")
    assert ended.returncode == 1
    said = json.loads(ended.stdout)
    assert said["verdict"] == "OUT_OF_TOLERANCE"
    (failed,) = (one for one in said["differences"] if not one["passes"])
    assert failed["position"] == draws[3] and failed["needed"] > said["tau"]
    text = cli(folder, "audit", "recompute", receipt, *POLICY)
    assert text.returncode == 1 and f"position {draws[3]}" in text.stdout
    assert done(folder, "audit", "recompute", receipt, *POLICY, "--tau", "30").startswith("OK: ")


def test_what_is_no_receipt_is_refused(folder: Path) -> None:
    ended = cli(folder, "audit", "recompute", "a.json", *POLICY)
    assert ended.returncode == 1 and "a.json" in ended.stderr
    assert cli(folder, "audit", "recompute", "missing.json", *POLICY).returncode == 2
    assert cli(folder, "audit", "recompute", "a.json", *POLICY, "--tau", "-1").returncode == 2
