"""The first layers of the demo model: real weights at a tenth of the time, for what does not depend on what is said."""

from dataclasses import replace

from fieldprint.adapters.transformers import LoadedModel
from fieldprint.decoder import Decoder


def cut_model(model: LoadedModel, num_layers: int = 3) -> LoadedModel:
    """The model with its first layers only."""
    d = model.decoder
    config = replace(d.config, num_layers=num_layers)
    cut = Decoder(
        config, d.embedding, d.layers[:num_layers], d.final_norm, d.head, d.inv_freq, d.rotary_scale
    )
    return replace(model, decoder=cut)
