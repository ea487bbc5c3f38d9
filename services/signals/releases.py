"""The releases that the signal service joins content rows of. One thread at a time (the event loop) may use it."""

from __future__ import annotations

from pathlib import Path

from pinrec_core.items.fresh import FreshItems
from pinrec_core.release import Release
from pinrec_core.serving.open_releases import OpenReleases
from pinrec_core.signals.batch_views import BatchViews
from pinrec_core.signals.fetch import SignalFetcher
from pinrec_core.signals.realtime import HistoryStore
from services.common.releases import ServedReleases
from services.items.client import ItemFollower


class SignalReleases(ServedReleases[SignalFetcher]):
    """A fetcher for each release that `root/serving.json` lists; `items` is the item service's address, "" = none."""

    def __init__(self, root: Path, views: BatchViews, store: HistoryStore, items: str = "") -> None:
        def open_fetcher(release: Release) -> SignalFetcher:
            fresh = FreshItems(release.content_dim)
            if items:  # histories need not wait for it: they lack the content of new items until then
                ItemFollower(items, release.number, fresh)
            return SignalFetcher(release, views, store, fresh)

        super().__init__(root, OpenReleases(root, open_fetcher, parts=("items", "text_encoder"), turn=1))
