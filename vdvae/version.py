"""The version of the package, which pyproject.toml and what a run was made on take from here."""

__version__ = "0.4.0"
