"""A served engine for the tests: keys, policy, log, a signed anchor with its fieldprint in front of position 0, and vLLM."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fieldprint.adapters.transformers import LoadedModel
from fieldprint.adapters.vllm.settings import AnchorFiles, ServeSettings
from fieldprint.adapters.vllm.versions import public_id
from fieldprint.anchor import AnchorArtifact, Policy, SignerRule, sign_anchor, sign_registration
from fieldprint.note import NoteSigner
from fieldprint.pipeline import fieldprint_of, text_tokens
from fieldprint.registry.append import append_event
from fieldprint.registry.events import registration_entry
from fieldprint.registry.state import Registry
from fieldprint.tlog import LogReader, LogWriter
from tests.signing import ORIGIN, make_policy

TEXT = "Your codename is Falcon. You live in Oslo. The password of the vault is Quartz. Always be brief."
FORM = "chat-system-before"
CONNECTOR = "FieldprintConnector"
# One process, one thread, no hub: the engine is in the test's own process.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass
class World:
    """Files of one engine under `folder`."""

    folder: Path
    model: LoadedModel
    model_folder: Path
    owner: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    log_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    overrider: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        policy = make_policy(self.owner, self.log_key)
        keys = {**policy.keys, "overrider": self.overrider.public_key().public_bytes_raw()}
        self.policy: Policy = replace(policy, keys=keys, override=SignerRule(("overrider",)))
        (self.folder / "policy.toml").write_bytes(self.policy.to_bytes())
        pem = self.log_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key = self.folder / "log.key"
        key.touch(0o600)
        key.write_bytes(pem)
        with LogWriter(self.folder / "log", NoteSigner(ORIGIN, self.log_key), create=True):
            pass
        self.anchors: dict[str, AnchorFiles] = {}
        self.artifacts: dict[str, AnchorArtifact] = {}
        self.tokens: dict[str, list[int]] = {}

    def log(self) -> LogWriter:
        """The log, for writing."""
        return LogWriter(self.folder / "log", NoteSigner(ORIGIN, self.log_key))

    def registry(self) -> Registry:
        """What the log says of anchors now."""
        return Registry.replay(LogReader(self.folder / "log", [self.policy.log_key]).entries(), self.policy)

    def make(self, name: str, text: str, fieldprint_file: Path) -> bytes:
        """The signed anchor, with its fieldprint in a file."""
        fieldprint, record = fieldprint_of(self.model, text, FORM)
        now = datetime.now(UTC).replace(microsecond=0)
        artifact = AnchorArtifact(name, "identity", text, now, now + timedelta(days=1), fieldprints=(record,))
        fieldprint.save(fieldprint_file)
        self.artifacts[name] = artifact
        self.tokens[name] = text_tokens(self.model, text, FORM)
        return sign_anchor(artifact, [self.owner])

    def registration(self, name: str) -> bytes:
        """The signed registration of an anchor that was made."""
        return sign_registration(self.artifacts[name], [self.owner])

    def sign(self, name: str, text: str = TEXT) -> None:
        """An anchor of the engine from its start: signed, registered, with its files beside."""
        files = AnchorFiles(str(self.folder / f"{name}.json"), str(self.folder / f"{name}.fieldprint"))
        Path(files.artifact).write_bytes(self.make(name, text, Path(files.fieldprint)))
        with self.log() as log:
            append_event(log, self.policy, registration_entry(self.registration(name)))
        self.anchors[name] = files

    def settings(self, **changed: Any) -> ServeSettings:
        """Of the engine."""
        values: dict[str, Any] = {
            "policy": str(self.folder / "policy.toml"),
            "model": str(self.model_folder),
            "log": str(self.folder / "log"),
            "log_key": str(self.folder / "log.key"),
            "receipts": str(self.folder / "receipts"),
            "anchors": self.anchors,
            "default": next(iter(self.anchors), None),
        }
        return ServeSettings(**(values | changed))

    def engine(
        self,
        *,
        module: str = "fieldprint.adapters.vllm.connector",
        settings: ServeSettings | None = None,
        **options: Any,
    ) -> Any:
        """vLLM with the plugin."""
        return vllm_engine(
            self.model_folder,
            kv_transfer_config={
                "kv_connector": CONNECTOR,
                "kv_connector_module_path": module,
                "kv_role": "kv_both",
                "kv_connector_extra_config": (settings or self.settings()).to_config(),
            },
            scheduler_cls="fieldprint.adapters.vllm.scheduler.FieldprintScheduler",
            **options,
        )


class Running:
    """An engine of vLLM in this process, driven step by step.

    Args:
        engine: of `World.engine`.
        model: for chat tokens.
    """

    def __init__(self, engine: Any, model: LoadedModel) -> None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        self.engine, self.model = engine, model
        self.scheduler = engine.llm_engine.engine_core.engine_core.scheduler
        self.supervisor, self.ledger = self.scheduler.supervisor, self.scheduler.ledger
        self.residency = get_kv_transfer_group().residency

    def play(
        self,
        texts: Sequence[str],
        *,
        anchors: Sequence[str | None] | None = None,
        max_tokens: int = 70,
        hook: Callable[[int, list[str]], None] | None = None,
    ) -> list[Any]:
        """The finished outputs of these chat messages; `hook` is called after each step with its number and the requests' ids.

        Args:
            texts: user messages.
            anchors: names, one each; None is the default.
            max_tokens: of each answer, which does not end earlier.
            hook: may damage things.
        """
        from vllm import SamplingParams

        ids = []
        for number, text in enumerate(texts):
            name = None if anchors is None else anchors[number]
            extra = None if name is None else {"fieldprint_anchor": name}
            parameters = SamplingParams(
                temperature=0, max_tokens=max_tokens, ignore_eos=True, extra_args=extra
            )
            prompt = {"prompt_token_ids": self.model.chat_tokens(text)}
            ids += self.engine.enqueue([prompt], parameters, use_tqdm=False)
        found: dict[str, Any] = {}
        steps = 0
        while self.engine.llm_engine.has_unfinished_requests():
            for output in self.engine.llm_engine.step():
                if output.finished:
                    found[public_id(output.request_id)] = output
            steps += 1
            assert steps < 5000, "the engine makes no progress"
            if hook is not None:
                hook(steps, ids)
        return [found[public_id(name)] for name in ids]

    def row(self, name: str) -> Any:
        """The ledger's row of a request, or None when it has ended."""
        return next(
            (
                row
                for row in self.ledger.rows.values()
                if public_id(row.request.request_id) == public_id(name)
            ),
            None,
        )

    def flip(self, block: int, element: int, layer: int = 0, bit: int = 20) -> None:
        """Flip a bit of a block's memory."""
        flat = self.residency._flats[layer]
        at = block * self.residency.layout.stride + element
        flat[at : at + 1].view(torch.int32)[0] ^= 1 << bit


def vllm_engine(model_folder: Path, **options: Any) -> Any:
    """vLLM on the CPU in this process."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM

    defaults: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "block_size": 32,
        "disable_log_stats": True,
    }
    return LLM(model=str(model_folder), **(defaults | options))
