"""Bytes are told in the unit that people would use."""

import pytest

from tlkit.files import format_bytes


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (20_520, "20.5 kB"),
        (44_765_128, "44.8 MB"),
        (999_400_000, "999 MB"),
        (999_900_000, "1 GB"),
        (1_598_627_388, "1.6 GB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_sizes_are_in_the_unit_that_people_use(number: float, said: str) -> None:
    assert format_bytes(number) == said
