"""`edgekd` and `python -m edgekd`."""

import sys
import warnings


def main() -> None:
    from edgekd.cli import run

    if not sys.warnoptions:  # what is wrong is told in messages; code of a recipe still warns
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(edgekd|numpy)\b")
    sys.exit(run())


if __name__ == "__main__":
    main()
