"""`pinrec demo` before it starts anything."""

import pytest

from pinrec_core.errors import InvalidRequest
from services.cli.demo import clear


def test_only_a_folder_that_a_demo_made_is_deleted(tmp_path):
    thesis = tmp_path / "thesis.txt"
    thesis.touch()
    with pytest.raises(InvalidRequest, match=r"--work has value .*; allowed: a new folder"):
        clear(tmp_path)
    assert thesis.exists()
    work = tmp_path / "work" / "demo"
    clear(work)
    (work / "data").mkdir()
    clear(work)
    assert not (work / "data").exists()
