"""What every test may rely on: a clean environment, few threads, no network hub, and the demo model when asked for."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fieldprint.adapters.transformers import LoadedModel

# Before torch is imported: its thread pools read these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run in Python; read when triton is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A machine that stalls for a moment makes no example wrong.
settings.register_profile("fieldprint", deadline=None)
settings.load_profile("fieldprint")

pytest_plugins = ["tests.postgres"]
USER_SETTINGS = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TERM")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's own settings change no result, and what a test sets is gone after it."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("FIELDPRINT_") or name in USER_SETTINGS:
            monkeypatch.delenv(name)
    yield
    monkeypatch.undo()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The demo model, converted into the user's cache by the first run that needs it."""
    if find_spec("torch") is None:
        pytest.skip("needs the extra [demo]; this is the base install")
    from fieldprint.adapters.model_folder import prepare_demo_model

    return prepare_demo_model()


@pytest.fixture(scope="session")
def demo_model(model_folder: Path) -> "LoadedModel":
    """The demo model in float32, loaded once a process; nothing changes it."""
    from fieldprint.adapters.transformers import load_model

    return load_model(model_folder)
