import pytest

from tests.explain.squares import Squares, squares
from tests.models.conftest import thin  # noqa: F401  # the fixture


@pytest.fixture(scope="session")
def test_squares() -> Squares:
    return squares(64, seed=1000)
