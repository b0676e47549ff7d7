"""`python -m capo_ray` is the console script `capo-ray`."""

import sys

from capo_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
