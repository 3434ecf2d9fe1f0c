"""`fieldprint log new` and `log adopt`, and where the record of the last signed checkpoint lies. No model is needed."""

from pathlib import Path

import pytest

from fieldprint.anchor import load_private_key
from fieldprint.note import NoteSigner
from fieldprint.tlog import LogWriter
from tests.commands import make_policy_here, run_process
from tests.commands import run_here as cli

KEYS = ("--log-key", "keys/log.key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_policy_here(tmp_path)
    assert cli(tmp_path, "log", "new", "log", *KEYS).returncode == 0
    return tmp_path


def test_a_moved_log_is_adopted_by_command_only(folder: Path) -> None:
    assert (folder / "log.last-signed").exists()
    (folder / "log").rename(folder / "moved")
    again = cli(folder, "log", "new", "moved", *KEYS)
    assert again.returncode == 1 and "holds a log already" in again.stderr
    adopted = cli(folder, "log", "adopt", "moved", "--policy", "policy.toml", *KEYS)
    assert adopted.returncode == 0 and "adopted moved with 0 entries" in adopted.stdout
    assert (folder / "moved.last-signed").exists()
    missing = cli(folder, "log", "adopt", "nowhere", "--policy", "policy.toml", *KEYS)
    assert missing.returncode == 1 and "holds no log" in missing.stderr
    wrong = cli(folder, "log", "adopt", "moved", "--policy", "policy.toml", "--log-key", "keys/owner.key")
    assert wrong.returncode == 1 and "not the log key of the policy" in wrong.stderr


def test_a_log_that_was_deleted_is_not_begun_again(folder: Path) -> None:
    """Its key has signed an empty tree; what came after it could be anything."""
    (folder / "log/checkpoint").unlink()
    (folder / "log.last-signed").unlink()
    fresh = cli(folder, "log", "new", "log", *KEYS)
    assert fresh.returncode == 0  # no entry was ever in it
    signer = NoteSigner("fieldprint.local/log", load_private_key(folder / "keys/log.key"))
    with LogWriter(folder / "log", signer) as log:
        log.append([b"entry"])
    (folder / "log/checkpoint").unlink()
    (folder / "log/tile").rename(folder / "tile")
    deleted = cli(folder, "log", "new", "log", *KEYS)
    assert deleted.returncode == 1 and "does not hold the 1 entries that were signed" in deleted.stderr


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_record_lies_where_it_is_told(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "option":
        made = cli(folder, "log", "new", "other", *KEYS, "--last-signed", "away/signed")
    else:
        monkeypatch.setenv("FIELDPRINT_LAST_SIGNED", "away/signed")
        made = cli(folder, "log", "new", "other", *KEYS)
    assert made.returncode == 0, made.stderr
    assert (folder / "away/signed").exists() and not (folder / "other.last-signed").exists()


def test_a_store_without_its_record_is_bad_usage(folder: Path) -> None:
    pytest.importorskip("obstore")
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true"}
    settings |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "x"}
    adopted = run_process(
        folder, "log", "adopt", "s3://bucket/log", "--policy", "policy.toml", *KEYS, **settings
    )
    assert adopted.returncode == 2 and "needs last_signed" in adopted.stderr


def test_the_base_install_says_what_a_store_needs(folder: Path) -> None:
    missing = "import sys; sys.modules['obstore'] = None"
    process = run_process(folder, "log", "show", "s3://b/l", "--policy", "policy.toml", before=missing)
    assert process.returncode == 1 and "pip install 'fieldprint[s3]'" in process.stderr, process.stderr
    assert "Traceback" not in process.stderr
