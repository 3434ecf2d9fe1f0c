"""A control folder that cannot be used makes its registry one out of reach, until it can."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.adapters.vllm.control import ControlFolder, LiveRegistry, write_whole
from fieldprint.errors import FieldprintError
from fieldprint.note import NoteSigner
from fieldprint.registry import Registry
from fieldprint.tlog import LogWriter
from tests.signing import ORIGIN, make_policy


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


def deaf(registry: LiveRegistry) -> bool:
    try:
        registry.poll()
    except FieldprintError as error:
        return "cannot be used" in str(error)
    return False


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[LiveRegistry]:
    owner, log_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    policy = make_policy(owner, log_key)
    with LogWriter(tmp_path / "log", NoteSigner(ORIGIN, log_key), create=True) as log:
        yield LiveRegistry(log, policy, Registry(policy))


@contextmanager
def listening(folder: Path, registry: LiveRegistry, install: Callable[..., None]) -> Iterator[None]:
    control = ControlFolder(folder, registry, install, lambda: {"anchors": []})
    try:
        until((folder / "state.json").exists)
        assert not deaf(registry)
        yield
    finally:
        control.close()


def accept(*_: object) -> None:
    pass


@pytest.mark.parametrize("broken", ["in", "out", "."])
def test_a_folder_that_is_gone_is_noticed_and_a_new_one_taken(
    broken: str, registry: LiveRegistry, tmp_path: Path
) -> None:
    folder = tmp_path / "control"
    with listening(folder, registry, accept):
        shutil.rmtree(folder / broken)
        until(lambda: deaf(registry))
        time.sleep(0.2)
        assert deaf(registry)  # and stays so
        (folder / "state.json").unlink(missing_ok=True)
        for name in (".", "in", "out"):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "in" / "1.json").write_text("{}")
        until(lambda: not deaf(registry))
        until((folder / "state.json").exists)
        until((folder / "out" / "1.json").exists)


def test_a_folder_that_others_may_write_to_is_not_listened_to(registry: LiveRegistry, tmp_path: Path) -> None:
    with listening(tmp_path / "control", registry, accept):
        (tmp_path / "control" / "in").chmod(0o777)
        (tmp_path / "control" / "in" / "1.json").write_text("{}")
        until(lambda: deaf(registry))
        assert (tmp_path / "control" / "in" / "1.json").exists()
        (tmp_path / "control" / "in").chmod(0o700)
        until(lambda: not deaf(registry))


def test_a_question_that_breaks_something_is_refused_and_the_next_one_heard(
    registry: LiveRegistry, tmp_path: Path
) -> None:
    def install(name: str, _signed: bytes, _file: str) -> None:
        if name == "bad":
            raise AttributeError("nobody thought of this")

    folder = tmp_path / "control"
    with listening(folder, registry, install):
        for number, name in enumerate(("bad", "good")):
            question = {"type": "install", "name": name, "artifact": "", "fieldprint": "file"}
            write_whole(folder / "in" / f"{number}.json", question)
        until((folder / "out" / "1.json").exists)
        assert json.loads((folder / "out" / "0.json").read_text())["refused"] == "AttributeError"
        assert json.loads((folder / "out" / "1.json").read_text()) == {"accepted": "good"}
        assert not deaf(registry)
