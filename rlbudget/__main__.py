"""The ``rlbudget`` command and ``python -m rlbudget``: the command line, or what it lacks."""

from __future__ import annotations

import sys

from rlbudget.errors import missing_package


def main() -> None:
    """Run the command line; one line and exit status 2 where its packages are not installed."""
    try:
        from rlbudget.cli.main import main as run
    except ModuleNotFoundError as error:
        said = missing_package(error)
        if said is None:
            raise
        print(f"rlbudget: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rlbudget: interrupted before it began", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
