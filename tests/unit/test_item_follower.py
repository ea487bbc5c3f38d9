"""The thread that follows the item service, started while a release is opened."""

from __future__ import annotations

import os
import threading

from pinrec_core.serving.open_releases import yield_the_cores
from services.items.client import ItemFollower


class Target:
    def apply(self, changes):
        pass


def nice_of(name):
    (thread,) = [thread for thread in threading.enumerate() if thread.name == name]
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)


def test_a_follower_that_a_low_priority_opening_starts_is_not_of_low_priority():
    targets = [Target(), Target()]  # a follower ends with its target
    ItemFollower("localhost:1", 1, targets[0])

    def open_beside():
        yield_the_cores()
        ItemFollower("localhost:1", 2, targets[1])

    opening = threading.Thread(target=open_beside)
    opening.start()
    opening.join()
    assert nice_of("items-of-1") == nice_of("items-of-2") == os.getpriority(os.PRIO_PROCESS, 0)
