"""The version of the package: read by its metadata, its records and its command line."""

__version__ = "0.1.0"
