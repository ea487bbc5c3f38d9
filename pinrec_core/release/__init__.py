"""Releases on disk and which of them are served: see `layout.py` for the folder, `serving.py` for serving.json."""

from pinrec_core.release.files import sha256_of
from pinrec_core.release.layout import (
    EVERYTHING,
    ItemTable,
    Release,
    list_releases,
    open_array,
    open_folder,
    open_release,
    read_release,
    verify_files,
)
from pinrec_core.release.publishing import ReleaseFacts, collect, publish, publish_folder
from pinrec_core.release.serving import (
    ServingState,
    activate,
    activation_lock,
    serving_state,
    write_serving_state,
)

__all__ = [
    "EVERYTHING",
    "ItemTable",
    "Release",
    "ReleaseFacts",
    "ServingState",
    "activate",
    "activation_lock",
    "collect",
    "list_releases",
    "open_array",
    "open_folder",
    "open_release",
    "publish",
    "publish_folder",
    "read_release",
    "serving_state",
    "sha256_of",
    "verify_files",
    "write_serving_state",
]
