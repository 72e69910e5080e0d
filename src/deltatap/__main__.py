"""``python -m deltatap`` is ``deltatap``."""

from deltatap.cli import app

if __name__ == "__main__":
    app()
