"""The border with other people's names: transformers here, serving engines beside it."""
