"""Prints those of some scenes that can be read, a line each; what is wrong with the others is said on stderr.

Exit code 3 where some cannot be read, 2 where none can or more than --max-failed cannot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from difixcli.errors import InputError
from difixcli.scenes import load_scene


def main(line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="+", help="scenes as difix takes them")
    parser.add_argument("--max-failed", type=int, default=1000, help="how many may be left out")
    given = parser.parse_args(line)
    failed = 0
    for spec in given.scenes:
        try:
            load_scene(spec)
        except InputError as error:
            failed += 1
            print(f"{spec}: failed: {error}", file=sys.stderr)
        else:
            print(spec)
    if failed == len(given.scenes) or failed > given.max_failed:
        print(f"Error: {failed} of {len(given.scenes)} scenes cannot be read.", file=sys.stderr)
        return 2
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
