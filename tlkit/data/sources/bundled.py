"""The small real sample that ships with tlkit."""

from tlkit.data.samples import Samples
from tlkit.data.sources.folder import read_folder
from tlkit.data.sources.kind import ReadOptions, SourceKind
from tlkit.recipe.fields.source import BundledSource
from tlkit.system import shipped


def read_bundled(source: BundledSource, options: ReadOptions) -> Samples:
    return read_folder(shipped(f"data/{source.bundled}"))


KIND = SourceKind(read_bundled, origin=lambda source: "shipped")
