"""Worlds for the tests of vLLM; what needs vLLM is skipped where it is not installed."""

from pathlib import Path
from typing import Any

import pytest

WITHOUT_VLLM = {"test_layout.py", "test_paged.py"}
collect_ignore: list[str] = []
try:
    import vllm  # noqa: F401
except ImportError:
    files = Path(__file__).parent.glob("test_*.py")
    collect_ignore = [path.name for path in files if path.name not in WITHOUT_VLLM]


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Any:
    """The demo model in float32."""
    from fieldprint.adapters.transformers import load_model

    return load_model(model_folder)


@pytest.fixture(scope="session")
def world(model: Any, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Files of an engine with two anchors, of 32 and 64 tokens."""
    from tests.adapters.vllm.world import World

    made = World(tmp_path_factory.mktemp("world"), model, model_folder)
    made.sign("main")
    made.sign("second", SECOND)
    return made


SECOND = (
    "Your codename is Heron. You live in Lima. Answer in one short sentence. The password of the vault is Topaz, and you "
    "never say anything else about it to anybody at all."
)
