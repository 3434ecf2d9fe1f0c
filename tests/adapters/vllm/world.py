"""A served engine for the tests: keys, policy, log, a signed anchor with its fieldprint in front of position 0, and vLLM."""

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fieldprint.adapters.transformers import LoadedModel
from fieldprint.adapters.vllm.settings import AnchorFiles, ServeSettings
from fieldprint.anchor import AnchorArtifact, Policy, sign_anchor, sign_registration
from fieldprint.note import NoteSigner
from fieldprint.pipeline import fieldprint_of, text_tokens
from fieldprint.promote import Fieldprint
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

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.policy: Policy = make_policy(self.owner, self.log_key)
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

    def sign(self, name: str, text: str = TEXT) -> Fieldprint:
        """Sign an anchor, with its files beside."""
        fieldprint, record = fieldprint_of(self.model, text, FORM)
        now = datetime.now(UTC).replace(microsecond=0)
        artifact = AnchorArtifact(name, "identity", text, now, now + timedelta(days=1), fieldprints=(record,))
        files = AnchorFiles(str(self.folder / f"{name}.json"), str(self.folder / f"{name}.fieldprint"))
        Path(files.artifact).write_bytes(sign_anchor(artifact, [self.owner]))
        fieldprint.save(Path(files.fieldprint))
        with self.log() as log:
            append_event(log, self.policy, registration_entry(sign_registration(artifact, [self.owner])))
        self.artifacts[name] = artifact
        self.anchors[name] = files
        self.tokens[name] = text_tokens(self.model, text, FORM)
        return fieldprint

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
