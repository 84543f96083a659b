def compiled_torch_version() -> str:
    """Version of the torch whose headers the extension was compiled with."""
