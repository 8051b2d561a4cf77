"""The subcommands: frozen dataclasses whose fields are their arguments, with ``execute``."""
