"""Where processed and downloaded data lie, and how a file gets there whole or not at all."""

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cache_folder", "download", "write_whole"]


def cache_folder(name: str, root: str | Path | None = None) -> Path:
    """``root``, or ``name`` within $PYG_EQUIVARIANT_CACHE or ~/.cache/pyg_equivariant; made if it is not there."""
    base = os.environ.get("PYG_EQUIVARIANT_CACHE") or Path.home() / ".cache" / "pyg_equivariant"
    folder = Path(base) / name if root is None else Path(root)
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well: readers never see half a file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], None] | None = None,
    timeout: float = 60.0,
) -> None:
    """Fetches ``url`` to ``path``, which exists only if what came is what was expected.

    Args:
        url: What to fetch.
        path: Where to put it.
        sha256: The digest that it must have.
        check: Another test of the file, which raises if it fails.
        timeout: Seconds without an answer.

    Raises:
        ConnectionError: if the server cannot be reached.
        ValueError: if the digest is another.
    """
    with write_whole(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response, temporary.open("wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
        except (urllib.error.URLError, TimeoutError) as error:
            raise ConnectionError(f"{url} cannot be downloaded ({error})") from error
        if sha256 is not None:
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                raise ValueError(f"{url} has the SHA-256 {digest} instead of {sha256}: it was not kept")
        if check is not None:
            check(temporary)
