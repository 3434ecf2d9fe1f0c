"""A control folder that cannot be used makes its registry one out of reach, until it can."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.adapters.vllm.control import ControlFolder, LiveRegistry
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


@pytest.mark.parametrize("broken", ["in", "out", "."])
def test_a_folder_that_is_gone_is_noticed_and_a_new_one_taken(broken: str, tmp_path: Path) -> None:
    owner, log_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    policy = make_policy(owner, log_key)
    folder = tmp_path / "control"
    with LogWriter(tmp_path / "log", NoteSigner(ORIGIN, log_key), create=True) as log:
        registry = LiveRegistry(log, policy, Registry(policy))
        control = ControlFolder(folder, registry, lambda *_: None, lambda: {"anchors": []})
        try:
            until((folder / "state.json").exists)
            assert not deaf(registry)
            shutil.rmtree(folder / broken)
            if broken == "out":
                (folder / "in" / "1.json").write_text("{}")
            until(lambda: deaf(registry))
            for name in ("in", "out"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            until(lambda: not deaf(registry))
        finally:
            control.close()
