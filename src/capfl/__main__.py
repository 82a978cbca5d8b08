"""``python -m capfl`` is ``capfl``."""

from capfl.cli import app

if __name__ == "__main__":
    app()
