"""`python -m hesstune` is the command `hesstune`."""

from hesstune.cli.main import run

if __name__ == "__main__":
    run()
