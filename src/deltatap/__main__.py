"""``python -m deltatap`` runs the command line."""

from deltatap.cli import app

if __name__ == "__main__":
    app()
