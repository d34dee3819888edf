"""The bank: what does not depend on budget, recipe tail or query, on disk and content-addressed.

One entry is a folder: sampled pictures (JPEG q95 4:4:4 at the full grid) with their descriptors,
audio at 16 kHz, mel cells, and ``entry.json``, written last, which makes it whole. Entries are
built under a temporary name and renamed, so a killed run leaves none that looks complete.

An entry that lives only as long as its run puts pictures by as they are, as far as ``PLAIN`` goes,
and makes JPEGs of the few that are looked at: the same pixels come out.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.digest import canonical_json, chain
from tokpipe.errors import ResourceError

JPEG_QUALITY = 95
#: Bytes of pictures that an entry without a key holds as they are; what comes after is JPEG.
PLAIN = 256 << 20
#: What such a picture begins with, unlike any JPEG, before its height, width and pixels.
_MARK, _SHAPE = b"RGB8", struct.Struct("<4sII")
_BLOCK = 1 << 20
#: Times a new entry is moved in place of one that is not whole.
_ATTEMPTS = 3
#: Bytes the bank may hold before the entries used longest ago are removed.
CAPACITY = 10 << 30
#: Fixed-width columns: file name to (dtype, values a row; 0 = set by the first rows).
FRAME = np.dtype(
    [
        ("pts", "<f8"),
        ("duration", "<f8"),
        ("index", "<i8"),
        ("offset", "<i8"),
        ("cut", "<f4"),
        ("text", "<f4"),
    ]
)
#: A picture at a finer grid: the sampled frame it belongs to, where it lies, how many times finer.
FINE = np.dtype([("step", "<i8"), ("offset", "<i8"), ("size", "<i8"), ("times", "<i8")])


def bank_root() -> Path:
    """Folder of the bank: ``TOKPIPE_CACHE_DIR`` or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("TOKPIPE_CACHE_DIR") or user_cache_dir("tokpipe")) / "bank"


def scratch_root() -> Path:
    """Where an entry that nobody keeps is built: the bank, or the system's own folder for such."""
    root = bank_root()
    there = next((p for p in (root, *root.parents) if p.exists()), root)
    return root if os.access(there, os.W_OK) else Path(tempfile.gettempdir()) / "tokpipe-bank"


class BankWriter:
    """Builds one entry; use as a context manager, which removes it unless kept.

    Args:
        key: Digest the entry is found by, None for one that lives only as long as the run.
        root: Folder of the bank.
    """

    def __init__(self, key: str | None, root: Path) -> None:
        """Make the temporary folder."""
        self.key, self.root = key, root
        try:
            root.mkdir(parents=True, exist_ok=True)
            sweep(root)
            self.path = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", dir=root))
        except OSError as error:
            raise cannot_write(root, error) from error
        self._files: dict[str, IO[bytes]] = {}
        self._sums: dict[str, int] = {}
        self._offset = self._fine = 0
        self._plain = PLAIN if key is None else 0

    def __enter__(self) -> BankWriter:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not committed under a key."""
        for stream in self._files.values():
            # Closing writes what is buffered; on a full disk that fails again.
            with suppress(OSError):
                stream.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def append(self, name: str, data: bytes | NDArray[Any]) -> None:
        """Append raw bytes to one file of the entry.

        Raises:
            ResourceError: The disk is full or read-only.
        """
        raw = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
        try:
            if name not in self._files:
                self._files[name] = (self.path / name).open("ab", buffering=1 << 20)
            self._files[name].write(raw)
            # Sums are looked at where an entry is found by its key.
            old = self._sums.get(name, 0)
            self._sums[name] = zlib.crc32(raw, old) if self.key is not None else old
        except OSError as error:
            raise cannot_write(self.root, error) from error

    def picture(
        self, rgb: NDArray[np.uint8], pts: float, duration: float, index: int, cut: float,
        text: float = 0.0,
    ) -> None:  # fmt: skip
        """Append a sampled picture uint8 [H, W, 3].

        Args:
            cut: How much it differs from the last.
            text: How rich in text it is, 0 to 1.
        """
        data = self._stored(rgb)
        self.append("pictures", data)
        self.append(
            "frames",
            np.array([(pts, duration, index, self._offset, cut, text)], dtype=FRAME).tobytes(),
        )
        self._offset += len(data)

    def fine_picture(self, rgb: NDArray[np.uint8], step: int, times: int) -> None:
        """Append the sampled picture ``step`` at ``times`` the grid's size, uint8 [H, W, 3]."""
        data = self._stored(rgb)
        self.append("fine", data)
        record = np.array([(step, self._fine, len(data), times)], dtype=FINE)
        self.append("fine_frames", record.tobytes())
        self._fine += len(data)

    def _stored(self, rgb: NDArray[np.uint8]) -> bytes:
        size = _SHAPE.size + rgb.nbytes
        if size > self._plain:
            return _jpeg(rgb)
        self._plain -= size
        return _SHAPE.pack(_MARK, *rgb.shape[:2]) + rgb.tobytes()

    def commit(self, meta: dict[str, Any]) -> Bank:
        """Write ``entry.json`` and open the entry; a keyed one is renamed into the bank."""
        try:
            self._close()
            files = {
                p.name: [p.stat().st_size, self._sums[p.name]] for p in self.path.iterdir()
            }  # fmt: skip
            whole = {**meta, "files": files}
            text = canonical_json({**whole, "digest": chain(whole)})
            (self.path / "entry.json").write_text(text, encoding="utf-8")
            # Opened before it moves: nobody can take it away from us any more.
            bank = Bank(self.path)
        except OSError as error:
            raise cannot_write(self.root, error) from error
        if self.key is not None:
            try:
                self._publish(self.root / self.key)
                trim(self.root, keep=self.key)
            except OSError as error:
                bank.close()
                raise cannot_write(self.root, error) from error
        return bank

    def _publish(self, target: Path) -> None:
        """Give the entry its name, unless another run finished the same bytes first."""
        for _ in range(_ATTEMPTS):
            with suppress(OSError):
                os.replace(self.path, target)
                return
            if (found := Bank.find(target.name, self.root)) is not None:
                found.close()
                return
            # What is there is no whole entry: moved aside first, so that two runs do not mix.
            aside = self.path.with_name(f"{self.path.name}.old")
            with suppress(OSError):
                os.replace(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
            aside.unlink(missing_ok=True)
        os.replace(self.path, target)

    def _close(self) -> None:
        for stream in self._files.values():
            stream.close()
        self._files.clear()


class Bank:
    """A complete entry, read by ranges.

    Attributes:
        meta: What ``entry.json`` holds.
    """

    def __init__(self, path: Path, *, check: bool = False) -> None:
        """Read ``entry.json`` and open every file, so that a later clean-up does not disturb us.

        Args:
            path: Folder of the entry.
            check: Read every byte and compare checksums.

        Raises:
            OSError: There is no entry.
            ValueError: It is not whole.
        """
        self.path = path
        self._files: dict[str, IO[bytes]] = {}
        try:
            self.meta = described(path / "entry.json")
            for name, (size, checksum) in self.meta["files"].items():
                self._files[name] = (path / name).open("rb")
                if self._size(name) != size:
                    raise ValueError(f"`{name}` has {self._size(name)} bytes, not {size}")
                if check and _checksum(self._files[name]) != checksum:
                    raise ValueError(f"`{name}` is damaged")
        except BaseException:
            self.close()
            raise
        self.num_frames = self._size("frames") // FRAME.itemsize

    @staticmethod
    def find(key: str, root: Path) -> Bank | None:
        """Open the entry of this key, None when there is none that is whole."""
        try:
            bank = Bank(root / key, check=True)
        except (OSError, ValueError):
            return None
        with suppress(OSError):
            # When it was used last; a bank that is only readable serves as well.
            os.utime(root / key / "entry.json")
        return bank

    def close(self) -> None:
        """Close every file."""
        for stream in self._files.values():
            stream.close()

    def _size(self, name: str) -> int:
        return os.fstat(self._files[name].fileno()).st_size if name in self._files else 0

    def rows(
        self, name: str, start: int, stop: int, dtype: np.dtype[Any], width: int = 1
    ) -> NDArray[Any]:
        """Rows ``start:stop`` [n, width] (or [n] for width 1) of a fixed-width file."""
        size = dtype.itemsize * width
        if name not in self._files or stop <= start:
            data = b""
        else:
            data = os.pread(self._files[name].fileno(), (stop - start) * size, start * size)
        array = np.frombuffer(data, dtype=dtype)
        return array.reshape(-1, width) if width > 1 else array

    def frames(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Frame records ``start:stop``."""
        return self.rows("frames", start, self.num_frames if stop is None else stop, FRAME)

    def pictures(
        self, wanted: Iterable[int], *, threads: int = 1
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode pictures by number, in the order given; each is uint8 [H, W, 3].

        Args:
            threads: Pictures decoded side by side, for readers that are faster than one.
        """
        if threads == 1:
            yield from ((i, self._picture(i)) for i in wanted)
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[tuple[int, Future[NDArray[np.uint8]]]] = deque()
            for i in wanted:
                ahead.append((i, pool.submit(self._picture, i)))
                if len(ahead) > 2 * threads:
                    number, made = ahead.popleft()
                    yield number, made.result()
            for number, made in ahead:
                yield number, made.result()

    def fine(self) -> NDArray[Any]:
        """Records of the pictures at finer grids, in order of their frames."""
        return self.rows("fine_frames", 0, self._size("fine_frames") // FINE.itemsize, FINE)

    def fine_picture(self, record: Any) -> NDArray[np.uint8]:
        """Decode a picture of :meth:`fine`, uint8 [H, W, 3]."""
        begin, size = int(record["offset"]), int(record["size"])
        return _decoded(os.pread(self._files["fine"].fileno(), size, begin))

    def _picture(self, number: int) -> NDArray[np.uint8]:
        record = self.frames(number, min(number + 2, self.num_frames))
        begin = int(record["offset"][0])
        end = int(record["offset"][1]) if len(record) > 1 else self._size("pictures")
        data = os.pread(self._files["pictures"].fileno(), end - begin, begin)
        return _decoded(data)


def _jpeg(rgb: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _decoded(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    if data.startswith(_MARK):
        _, high, wide = _SHAPE.unpack_from(data)
        data = _jpeg(np.frombuffer(data, np.uint8, offset=_SHAPE.size).reshape(high, wide, 3))
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def described(path: Path) -> dict[str, Any]:
    """What an ``entry.json`` says; raises ValueError where it is not whole."""
    meta = json.loads(path.read_text(encoding="utf-8"))
    digest = meta.pop("digest", None) if isinstance(meta, dict) else None
    if digest is None or digest != chain(meta):
        raise ValueError(f"`{path}` does not describe an entry")
    return meta  # type: ignore[no-any-return]


def _checksum(stream: IO[bytes]) -> int:
    value = 0
    while block := stream.read(_BLOCK):
        value = zlib.crc32(block, value)
    return value


def sweep(root: Path) -> None:
    """Remove unfinished entries whose process is gone."""
    for path in root.glob(".*-*"):
        pid = path.name[1:].partition("-")[0]
        if pid.isdigit() and not alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def alive(pid: int) -> bool:
    """A process of this number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def trim(root: Path, *, keep: str = "", capacity: int = CAPACITY) -> int:
    """Remove the entries used longest ago until the bank fits; returns the bytes removed."""
    found = []
    for path in root.iterdir():
        entry = path / "entry.json"
        # Another run may remove an entry while we look at it.
        with suppress(OSError):
            if not path.name.startswith(".") and entry.exists():
                size = sum(p.stat().st_size for p in path.iterdir())
                found.append((entry.stat().st_mtime, size, path))
    total, removed = sum(size for _, size, _ in found), 0
    for _, size, path in sorted(found):
        if total - removed <= capacity:
            break
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True)
            removed += size
    return removed


def cannot_write(root: Path, error: OSError) -> ResourceError:
    """The error of a bank that takes no more."""
    return ResourceError(
        f"cannot write the bank in `{root}`: {error.strerror or error}",
        hint="free space there, or set TOKPIPE_CACHE_DIR to another folder",
    )
