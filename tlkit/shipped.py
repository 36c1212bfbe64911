"""Where the recipes and pictures lie that come with tlkit."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_IN_WHEEL = _PACKAGE / "shipped_files"


def shipped(name: str) -> Path:
    """A file or folder that comes with tlkit: `recipes/quickstart.yaml`, `data/fashion_mnist_mini`. It need not exist.

    In a checkout it lies beside the package; pyproject.toml puts it into the wheel as tlkit/shipped_files.
    """
    return (_IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent) / name
