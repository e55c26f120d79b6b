"""The weights behind a name, as hashes: the same name may mean other weights tomorrow."""

from __future__ import annotations

from tunesmith.export.opening import ModelSource
from tunesmith.models.content import content_hash
from tunesmith.models.stack import stacked_hash


def weights_identity(source: ModelSource) -> dict[str, str]:
    """Hashes of the base folder, and of the adapter or checkpoint on top of it."""
    found = {"base": stacked_hash(source.base, source.settings.merged_adapters)}
    if source.adapter is not None:
        found["adapter"] = content_hash(source.adapter)
    if source.checkpoint is not None:
        found["checkpoint"] = str(source.checkpoint.manifest["checksum"])
    return found
