"""The first layers of the demo model: real weights at a tenth of the time, for what does not depend on what is said."""

from dataclasses import replace

from fieldprint.adapters.transformers import LoadedModel
from fieldprint.decoder import Decoder


def cut_model(model: LoadedModel, num_layers: int = 3) -> LoadedModel:
    """The model with its first layers only."""
    return replace(model, decoder=first_layers(model.decoder, num_layers))


def first_layers(decoder: Decoder, count: int) -> Decoder:
    """The decoder's first layers between its embedding and its head."""
    d = decoder
    config = replace(d.config, num_layers=count)
    return Decoder(config, d.embedding, d.layers[:count], d.final_norm, d.head, d.inv_freq, d.rotary_scale)
