"""Says of an assertion in the machine or the model what was compared, as pytest does of those in tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.model.machine", "tests.model.meetings", "tests.model.model")
