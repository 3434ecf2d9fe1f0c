"""Generation: prompts and a pinned anchor in, tokens out, provisional first and final once committed."""

from fieldprint.generate.effects import Dropped, EffectsGate, Released
from fieldprint.generate.engine import Engine
from fieldprint.generate.gate import Gate
from fieldprint.generate.request import (
    AttentionSettings,
    Bypassed,
    Committed,
    EngineSettings,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    Provisional,
    RolledBack,
)
from fieldprint.generate.sampling import Sampler

__all__ = [
    "AttentionSettings",
    "Bypassed",
    "Committed",
    "Dropped",
    "EffectsGate",
    "Engine",
    "EngineSettings",
    "Event",
    "Finished",
    "Gate",
    "GenerationRequest",
    "GenerationResult",
    "Provisional",
    "Released",
    "RolledBack",
    "Sampler",
]
