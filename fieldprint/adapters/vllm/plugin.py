"""vLLM's entry point `vllm.general_plugins`; it runs in every process of an engine, and may run twice."""


def register() -> None:
    """Put Fieldprint's metadata builders in the place of vLLM's; without an installed anchor they do what those do.

    vLLM logs an error of a plugin and goes on without it. An engine with `FieldprintConnector` then ends before its
    first token: the connector looks which builders its layers have.

    Raises:
        CompatibilityError: this version of vLLM is not known.
    """
    from fieldprint.adapters.vllm.versions import check_version, override_backends

    check_version()
    override_backends()
