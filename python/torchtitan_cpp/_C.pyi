"""Written by scripts/generate_stub.py from the built module; do not edit."""


class core:
    @staticmethod
    def compiled_torch_version() -> str:
        """Version of the torch whose headers the extension was compiled with."""
