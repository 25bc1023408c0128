"""The commands: each parses, calls one library function, and prints. A part is imported only inside the command that
needs it, so that --help is instant."""

TYPE_CHECKING = False  # without `typing`: `sdpl.cli.entry`, which imports this, is to stand as early as can be
if TYPE_CHECKING:
    from sdpl.cli.group import command as main

__all__ = ["main"]


def __getattr__(name: str) -> "object":
    """`from sdpl.cli import main` imports the commands only then."""
    if name == "main":
        from sdpl.cli.group import command

        return command
    raise AttributeError(f"module 'sdpl.cli' has no attribute {name!r}")
