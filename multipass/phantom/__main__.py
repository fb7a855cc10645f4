"""Write a synthetic cohort in the layout of CTPEL.

    python -m multipass.phantom --output ctpel --patients 12 --seed 1

Each patient depends on the seed and its own number alone; the same command writes the same bytes.
Patients that are already there are kept, so an interrupted run can be started again.
"""

from __future__ import annotations

import sys

import tyro

from multipass.phantom.cohort import Options, write_cohort


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    try:
        for line in write_cohort(options):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        print(f"phantom: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("phantom: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
