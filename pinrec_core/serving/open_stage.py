"""Local or at a distance, with one signature: what `OpenReleases` calls for each release that it opens."""

from __future__ import annotations

from pinrec_core.release import Release
from pinrec_core.serving.contract import StageContract
from pinrec_core.serving.open_releases import OpenStage, Stage


def open_stage(contract: StageContract, address: str, open_local: OpenStage) -> OpenStage:
    """`open_local` if `address` is empty, else a client of the Triton there, which all releases share.

    The local stage stays behind a callable, so that a process which only forwards imports neither torch nor faiss.
    """
    if not address:
        return open_local
    from pinrec_core.serving.remote import RemoteStage

    remote = RemoteStage(address, contract)

    def open_remote(_: Release) -> Stage:
        return remote

    return open_remote
