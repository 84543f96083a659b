def compiled_torch_version() -> str:
    """Version of the torch whose headers the extension was compiled with."""

def install_stop_signal() -> None:
    """Take SIGTERM over: the first one sets a flag, the second ends the process."""

def stop_requested() -> bool:
    """Whether SIGTERM has come since install_stop_signal()."""
