"""Networks that are quick to build, copy and save."""

from collections.abc import Iterator
from functools import partial

import pytest
from timm.models import vgg

from tests.thin import thin_networks


@pytest.fixture(scope="module")
def thin_vgg() -> Iterator[None]:
    """128 neurons in place of 4,096 in VGG's first dense layer: without 9 in 10 of its 129 million weights, and otherwise the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "VGG", partial(vgg.VGG, mlp_ratio=1 / 32))
        yield


@pytest.fixture(scope="module")
def thin() -> Iterator[None]:
    with thin_networks():
        yield
