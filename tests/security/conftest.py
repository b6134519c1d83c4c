"""Fixtures of the attacks."""

from tests.security.attacked import attacked as attacked
from tests.security.guarded import guarded as guarded
