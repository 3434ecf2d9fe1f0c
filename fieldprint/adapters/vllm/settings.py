"""What an engine is told: vLLM's `kv_connector_extra_config`, which every process of it gets.

{"anchors": {"main": {"artifact": "anchor.json", "fieldprint": "anchor.fieldprint"}}, "default": "main",
 "policy": "policy.toml", "model": "SmolLM2", "log": "log", "log_key": "keys/log.key", "receipts": "receipts",
 "database": null, "orders": null, "control": null, "admin_token": null, "last_signed": null, "engine": "engine",
 "scrub_interval": 8, "provisional_cap": 64, "kernel": "vllm", "operator": "floor", "g": 0.0, "window": null, "num_sinks": 0,
 "mass": false}
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fieldprint.errors import FormatError
from fieldprint.generate.request import AttentionSettings

VLLM, PAGED = "vllm", "paged"
KERNELS = (VLLM, PAGED)
NUMBERS: dict[str, type | tuple[type, ...]] = {
    "scrub_interval": int,
    "provisional_cap": int,
    "log_timeout": (int, float),
    "g": (int, float),
    "window": int,
    "num_sinks": int,
}


def kernel_for(
    asked: str | None, *, operator: str, g: float, window: int | None, num_sinks: int, mass: bool
) -> str:
    """The kernel that was asked for, or else the one that these settings need.

    Raises:
        FormatError: a setting is out of its range, or the kernel that was asked for cannot do it.
    """
    try:
        attention = AttentionSettings(operator, g, window, num_sinks)
    except ValueError as error:
        raise FormatError(str(error)) from error
    if operator == "mixture" and not g:
        raise FormatError(
            "a mixture with g = 0 gives the anchor no weight at all", remedy="Give it a g above 0"
        )
    plain = attention == AttentionSettings() and not mass
    kernel = asked or (VLLM if plain else PAGED)
    if kernel not in KERNELS:
        raise FormatError(f"kernel must be one of {', '.join(KERNELS)}, not {kernel!r}")
    if kernel == VLLM and not plain:
        raise FormatError(
            "vLLM's kernels can neither floor nor mixture, window or mass",
            remedy='Set kernel to "paged"',
        )
    return kernel


@dataclass(frozen=True, slots=True)
class AnchorFiles:
    """Files of one anchor: the signed artifact, and its fieldprint in front of position 0."""

    artifact: str
    fieldprint: str


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of one engine.

    anchors: files by the name that a request may ask for. default: of the anchor of requests that ask for none; None: without.
    model: the model's folder, whose digest the leaves name. log, log_key: where leaves go; both or none. receipts: folder.
    database, orders: watched for revocations and overrides. control: folder by which a running engine is told of events and
    anchors; None: it is not. admin_token: file of the token that whoever tells it over HTTP must bear. last_signed: file that
    remembers the log's last checkpoint; None: beside the log. engine: its name. scrub_interval: steps between two looks at the
    pinned blocks. provisional_cap: generated tokens of a request that may be uncommitted. log_timeout: seconds. kernel: "vllm" for
    the engine's own, over anchor and context in one softmax, or "paged", ours, which alone can do something else. operator, g, window,
    num_sinks: as `AttentionSettings`. mass: whether the anchor's mass is summed.
    """

    policy: str
    model: str
    log: str
    log_key: str
    receipts: str
    anchors: Mapping[str, AnchorFiles] = field(default_factory=dict)
    default: str | None = None
    database: str | None = None
    orders: str | None = None
    control: str | None = None
    admin_token: str | None = None
    last_signed: str | None = None
    engine: str = "engine"
    scrub_interval: int = 8
    provisional_cap: int = 64
    log_timeout: float = 10.0
    kernel: str = VLLM
    operator: str = "floor"
    g: float = 0.0
    window: int | None = None
    num_sinks: int = 0
    mass: bool = False

    def __post_init__(self) -> None:
        if self.default is not None and self.default not in self.anchors:
            raise FormatError(
                f"the default anchor {self.default!r} is none of {', '.join(self.anchors) or 'no anchors'}"
            )
        if self.scrub_interval < 1 or self.provisional_cap < 1 or self.log_timeout <= 0:
            raise FormatError("scrub_interval, provisional_cap and log_timeout must be positive")
        kernel_for(
            self.kernel,
            operator=self.operator,
            g=self.g,
            window=self.window,
            num_sinks=self.num_sinks,
            mass=self.mass,
        )

    @property
    def attention(self) -> AttentionSettings:
        """The operator and what the context may see."""
        return AttentionSettings(self.operator, float(self.g), self.window, self.num_sinks)

    def to_config(self) -> dict[str, Any]:
        """What `from_config` reads."""
        return asdict(self) | {"anchors": {name: asdict(files) for name, files in self.anchors.items()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ServeSettings":
        """The settings in vLLM's `kv_connector_extra_config`.

        Raises:
            FormatError: something is missing, of another type, or not known.
        """
        if unknown := config.keys() - cls.__annotations__.keys():
            raise FormatError(
                f"kv_connector_extra_config has {', '.join(sorted(unknown))}, which Fieldprint does not know"
            )
        for name in ("policy", "model", "log", "log_key", "receipts"):
            if not isinstance(config.get(name), str):
                raise FormatError(
                    f"kv_connector_extra_config needs {name}, a path", remedy="fieldprint serve fills it in"
                )
        anchors = {}
        given = config.get("anchors", {})
        for name, files in given.items() if isinstance(given, Mapping) else [("", None)]:
            if not isinstance(files, Mapping) or files.keys() != {"artifact", "fieldprint"}:
                raise FormatError("anchors must map names to an artifact and a fieldprint")
            anchors[name] = AnchorFiles(str(files["artifact"]), str(files["fieldprint"]))
        rest = {name: value for name, value in config.items() if name != "anchors"}
        for name, kind in NUMBERS.items():
            if name == "window" and rest.get(name) is None:
                continue
            if name in rest and (not isinstance(rest[name], kind) or isinstance(rest[name], bool)):
                raise FormatError(f"{name} must be a number, not {rest[name]!r}")
        for name in ("default", "database", "orders", "control", "admin_token", "last_signed"):
            if rest.get(name) is not None and not isinstance(rest[name], str):
                raise FormatError(f"{name} must be a text or null, not {rest[name]!r}")
        for name, kind in (("operator", str), ("kernel", str), ("mass", bool)):
            if name in rest and not isinstance(rest[name], kind):
                raise FormatError(
                    f"{name} must be {'true or false' if kind is bool else 'a text'}, not {rest[name]!r}"
                )
        return cls(anchors=anchors, **rest)
