"""Archives as their publishers ship them: held to the published checksum, and only the wanted files taken out.

The MD5 sums are GroupLens' `<archive>.md5` files and those of KuaiRand's Zenodo record 10439422. GroupLens changes
ml-latest and ml-latest-small from time to time, and for RetailRocket (Kaggle) and Amazon reviews we found no published
sum: those are read unchecked, with a warning where they come as an archive.
"""

from __future__ import annotations

import hashlib
import logging
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from pinrec_core.errors import InvalidData

MD5 = {
    "ml-100k.zip": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906",
    "ml-10m.zip": "ce571fd55effeba0271552578f2648bd",
    "ml-20m.zip": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m.zip": "6b51fb2759a8657d3bfcbfc42b592ada",
    "KuaiRand-Pure.tar.gz": "0820331067a3784d9691136f772b35a7",
    "KuaiRand-1K.tar.gz": "6b0b9c8222d67fcd4c676218edca3f1f",
    "KuaiRand-27K.tar.gz": "3e3c799a24e2d23a4d2c757fbf9adf59",
}
"""Published MD5 sum by the archive's published name. It finds damage, not forgery."""

_BLOCK = 1 << 20
_TAR = (".tar.gz", ".tgz", ".tar")

log = logging.getLogger(__name__)


@contextmanager
def opened(source: Path, wanted: Callable[[str], bool], dest: Path, progress: bool = False) -> Iterator[Path]:
    """A folder with the files of `source`: itself, or where it is an archive, its `wanted` files for a while.

    `wanted` is asked with each file's bare name. Unpacked files lie beside `dest`, flat, until the block ends.
    Raises InvalidData if the archive differs from the published one, is no zip or tar, or holds no wanted file.
    """
    if source.is_dir():
        yield source
        return
    check_md5(source, progress)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}-source-", dir=dest.parent) as scratch:
        try:
            unpack = _unpack_tar if source.name.endswith(_TAR) else _unpack_zip
            taken = unpack(source, wanted, Path(scratch), progress)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InvalidData(f"{source.name} is not a whole zip or tar archive: {error}") from error
        if not taken:
            raise InvalidData(f"{source.name} holds none of the files that this reader reads")
        yield Path(scratch)


def check_md5(archive: Path, progress: bool = False) -> None:
    """Raises InvalidData if the MD5 of `archive` is not the one published under its name; none there: a warning."""
    if archive.name not in MD5:
        log.warning("%s: no checksum is known for this name; read unchecked", archive.name)
        return
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file, _bar(f"md5 of {archive.name}", archive.stat().st_size, progress) as bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != MD5[archive.name]:
        raise InvalidData(
            f"{archive.name} has the MD5 {digest.hexdigest()}; published: {MD5[archive.name]}. Download it again"
        )


def _unpack_zip(source: Path, wanted: Callable[[str], bool], folder: Path, progress: bool) -> list[str]:
    with zipfile.ZipFile(source) as archive:
        members = {PurePosixPath(m.filename).name: m for m in archive.infolist() if not m.is_dir()}
        taken = [name for name in members if wanted(name)]
        for name in taken:
            with archive.open(members[name]) as content:
                _copy(content, folder / name, members[name].file_size, progress)
    return taken


def _unpack_tar(source: Path, wanted: Callable[[str], bool], folder: Path, progress: bool) -> list[str]:
    taken = []
    with tarfile.open(source, "r|*") as archive:  # a stream: nothing is held
        for member in archive:
            name = PurePosixPath(member.name).name
            if member.isfile() and wanted(name):
                content = archive.extractfile(member)
                assert content is not None, "a regular file has content"
                _copy(content, folder / name, member.size, progress)
                taken.append(name)
    return taken


def _copy(content: IO[bytes], path: Path, size: int, progress: bool) -> None:
    with path.open("wb") as file, _bar(f"unpack {path.name}", size, progress) as bar:
        while block := content.read(_BLOCK):
            file.write(block)
            bar.update(len(block))


def _bar(what: str, size: int, progress: bool) -> tqdm[None]:
    return tqdm(desc=what, total=size, unit="B", unit_scale=True, disable=not progress)
