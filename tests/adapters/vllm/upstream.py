"""vLLM's own tests of the parts that Fieldprint touches, with the plugin loaded and without; `make vllm-upstream`.

The source distribution of the installed version is fetched from the Python package index and its digest compared, and its tests run
twice. Tests that need a GPU or a model from the hub fail or skip both times; those that need no more of one than its config, as the
scheduler's do of opt-125m, find one of that shape. What passes without the plugin must pass with it.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path

INDEX = "https://pypi.org/pypi/vllm/{version}/json"
FILES = (
    "tests/test_attention_backend_registry.py",
    "tests/kernels/attention/test_attention_selector.py",
    "tests/v1/attention/test_attention_backends.py",
    "tests/v1/attention/test_attention_backends_selection.py",
    "tests/v1/attention/test_attention_splitting.py",
    "tests/v1/attention/test_batch_reordering.py",
    "tests/v1/attention/test_group_head_counts.py",
    "tests/v1/attention/test_group_sliding_window.py",
    "tests/v1/core/prefix_cache",
    "tests/v1/core/test_deferred_block_free.py",
    "tests/v1/core/test_kv_cache_metrics.py",
    "tests/v1/core/test_kv_cache_utils.py",
    "tests/v1/core/test_output.py",
    "tests/v1/core/test_prefix_caching.py",
    "tests/v1/core/test_priority_preemption_bug.py",
    "tests/v1/core/test_scheduler.py",
    "tests/v1/core/test_single_type_kv_cache_manager.py",
)
NEEDED = ("tblib==3.2.2", "pytest-asyncio==1.5.0")  # by vLLM's conftest
PLUGIN = "from fieldprint.adapters.vllm.plugin import register\n\nregister()\n"
OPT_125M = {
    "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 2048, "vocab_size": 50272, "word_embed_proj_dim": 768,
    "do_layer_norm_before": True, "activation_function": "relu", "dtype": "float16", "bos_token_id": 2, "eos_token_id": 2,
    "pad_token_id": 1,
}  # fmt: skip
Outcomes = dict[str, str]


def main() -> int:
    """0 when everything that passes without the plugin passes with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the sources are kept; else a temporary one")
    parser.add_argument("files", nargs="*", help="of vLLM's tests; else those that this program names")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sources = fetch(folder)
        files = [name for name in options.files or FILES if (sources / name).exists()]
        plain = run(sources, folder, files, plugin=False)
        loaded = run(sources, folder, files, plugin=True)
    for name in files:
        print(f"{name}: {count(plain, name)} without the plugin, {count(loaded, name)} with it")  # noqa: T201
    worse = sorted(name for name, outcome in plain.items() if outcome == "passed" != loaded.get(name))
    for name in worse:
        print(f"passes only without the plugin: {name}")  # noqa: T201
    passed = sum(outcome == "passed" for outcome in loaded.values())
    print(f"{passed} of {len(loaded)} pass with the plugin, {len(worse)} only without it")  # noqa: T201
    return 1 if worse or not passed else 0


def fetch(folder: Path) -> Path:
    """The unpacked sources of the vLLM that is installed.

    Raises:
        ValueError: what came has another digest than the index says.
    """
    import vllm

    version = vllm.__version__.split("+")[0]
    sources = folder / f"vllm-{version}"
    if not (sources / "tests").is_dir():
        with urllib.request.urlopen(INDEX.format(version=version), timeout=60) as answer:
            urls = json.load(answer)["urls"]
        (chosen,) = (each for each in urls if each["packagetype"] == "sdist")
        with urllib.request.urlopen(chosen["url"], timeout=600) as answer:
            data = answer.read()
        if hashlib.sha256(data).hexdigest() != chosen["digests"]["sha256"]:
            raise ValueError(f"{chosen['url']} has another digest than the index says")
        archive = folder / "vllm.tar.gz"
        archive.write_bytes(data)
        with tarfile.open(archive) as tar:
            tests = [member for member in tar.getmembers() if f"{sources.name}/tests/" in member.name]
            tar.extractall(folder, tests, filter="data")
    site = folder / "site"
    if not site.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), *NEEDED]
        subprocess.run(command, check=True)
    (folder / "fieldprint_loaded.py").write_text(PLUGIN)
    model = folder / "hub" / "hub" / "models--facebook--opt-125m"
    for path, content in (
        ("refs/main", "0" * 40),
        (f"snapshots/{'0' * 40}/config.json", json.dumps(OPT_125M)),
    ):
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_text(content)
    return sources


def run(sources: Path, folder: Path, files: list[str], *, plugin: bool) -> Outcomes:
    """The outcome of each test: "passed", "failed" or "skipped"."""
    report = folder / f"{'loaded' if plugin else 'plain'}.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    command += ["-o", "junit_family=xunit1", *(["-p", "fieldprint_loaded"] if plugin else []), *files]
    report.unlink(missing_ok=True)  # one of before is no answer
    path = os.pathsep.join([str(folder), str(folder / "site")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["HF_HOME"] = str(folder / "hub")
    subprocess.run(command, cwd=sources, env=environment, check=False)
    found: Outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        marks = {child.tag for child in case}
        outcome = "failed" if marks & {"failure", "error"} else "skipped" if "skipped" in marks else "passed"
        found[f"{case.get('file')}::{case.get('name')}"] = outcome
    return found


def count(outcomes: Outcomes, name: str) -> str:
    """How many tests of a file or folder had which outcome."""
    mine = [outcome for test, outcome in outcomes.items() if test.startswith(name)]
    return ", ".join(f"{mine.count(kind)} {kind}" for kind in ("passed", "failed", "skipped") if kind in mine)


if __name__ == "__main__":
    sys.exit(main())
