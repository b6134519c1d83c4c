"""The version of the package, as it was installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("eventbus-fastapi")
except PackageNotFoundError:  # a checkout on the path, not installed
    VERSION = "0.0.0"
