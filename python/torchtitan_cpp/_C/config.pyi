class DateTime:
    """A date or time, which no field takes."""

    @property
    def text(self) -> str: ...

class TomlValue:
    """A value and where it was written."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...
    @property
    def value(
        self,
    ) -> bool | int | float | str | DateTime | list[TomlValue] | dict[str, TomlEntry]:
        """The value; a dict for a table."""

class TomlEntry:
    """A key of a table and its value."""

    @property
    def line(self) -> int:
        """Line of the key."""
    @property
    def column(self) -> int: ...
    @property
    def value(self) -> TomlValue: ...

def parse_toml(text: str | bytes, *, source: str) -> dict[str, TomlEntry]:
    """Parse a TOML 1.0 text (UTF-8) into a dict of TomlEntry.

    Raises:
        ValueError: "source:line:column: reason" at the first error of syntax; a key
            given twice is one.
    """
