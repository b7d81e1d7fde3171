"""The version of the package. Every module can import it, as it imports nothing itself."""

__version__ = "0.2.0"
