"""Names of a package that are imported where they are first used: a command's help needs no torch."""

TYPE_CHECKING = False  # `typing` costs milliseconds, in which a Ctrl-C would still be a traceback
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def importer(package: str, homes: "Mapping[str, str]") -> "Callable[[str], object]":
    """The `__getattr__` of a package.

    Args:
        package: Its full name.
        homes: Public name -> the part of the package that has it; "" for a name that is a part itself.
    """

    def attribute(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import sys
        from importlib import import_module

        home = homes[name]
        part = import_module(f"{package}.{home or name}")
        value: object = getattr(part, name) if home else part
        setattr(sys.modules[package], name, value)  # looked up once
        return value

    return attribute
