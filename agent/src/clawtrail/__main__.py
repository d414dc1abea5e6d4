"""`clawtrail`, and `python -m clawtrail`: the command line, with a short way to the two commands that have to be quick."""

from __future__ import annotations

import sys


def main() -> int:
    if sys.argv[1:2] == ["hook"]:
        from . import hook

        return hook.main(sys.argv[2:])
    if sys.argv[1:2] == ["health"]:
        from . import health

        return health.main(sys.argv[2:])
    from . import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
