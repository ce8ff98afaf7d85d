"""`edgekd` and `python -m edgekd`."""

import sys


def main() -> None:
    from edgekd.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
