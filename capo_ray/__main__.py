"""`python -m capo_ray` is the console script `capo-ray`."""

from capo_ray.cli import program

if __name__ == "__main__":
    program()
