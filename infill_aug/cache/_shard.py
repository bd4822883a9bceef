"""One shard: an append-only USTAR file of records, and the sorted index that is written once it is sealed.

A member is named `<key>-<crc>.<ext>`: 32 hexadecimal characters of key, then `crc32(b"<key>.<ext>" + payload)` in 8.
The crc covers the name too, so that damage can't serve an intact payload under another key. Nothing but name and size
varies in a header: a header is sound when writing it again gives the same 512 bytes.

`<shard>.idx.npy` is an ordinary npy file of `ROW`, sorted by key, followed by 12 bytes: the size of the shard it
describes (u64) and the crc32 of all that precedes (u32), little endian. It only saves a scan: without it, or if it does
not match, the headers are read.
"""

import contextlib
import errno
import io
import os
import re
import socket
import struct
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
MAX_PAYLOAD = 1 << 30
# `shard` is the shard's number in a reader's memory, and 0 on disk.
ROW = np.dtype(
    [
        ("hi", "<u8"),
        ("lo", "<u8"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("crc", "<u4"),
        ("ext", "S4"),
        ("shard", "<u4"),
    ]
)

_KEY = re.compile(r"[0-9a-f]{32}")
_MEMBER = re.compile(rb"(?s)(?=.{124}([0-7]{11}))(([0-9a-f]{32})-([0-9a-f]{8})\.([a-z0-9]{1,4}))\0")
_HEADER = bytearray(BLOCK)
_HEADER[100:124] = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
_HEADER[135:157] = b"\0" + b"0" * 11 + b"\0" + b" " * 8 + b"0"  # end of size, mtime, checksum as it is summed, type
_HEADER[257:265] = b"ustar\x0000"


class InfillStoreError(RuntimeError):
    """The store could not do what was asked; the message says where, why and what to do next."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write at `path` into an `InfillStoreError`."""
    try:
        yield
    except OSError as err:
        raise InfillStoreError(
            f"could not write {path}: {err.strerror or err}. What was stored before stays readable; check free space, "
            "quota and permissions there, then run the same command again: it continues where it stopped."
        ) from err


def checksum(key: str, ext: str, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(f"{key}.{ext}".encode()))


def padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def header(name: bytes, length: int) -> bytes:
    # Not tarfile's: what it writes into unused fields differs between Python versions.
    block = bytearray(_HEADER)
    block[: len(name)] = name
    block[124:135] = b"%011o" % length
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def check_key(key: str) -> str:
    if not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ValueError(f"{key!r} is no key: it must be 32 lowercase hexadecimal characters, as `digest` makes them")
    return key


def split_key(key: str) -> tuple[int, int]:
    return int(key[:16], 16), int(key[16:], 16)


def join_key(hi: int, lo: int) -> str:
    return f"{hi:016x}{lo:016x}"


def write_at(fd: int, data: bytes, position: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, position)
        left, position = left[written:], position + written


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as err:  # some network file systems can't, and need not
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Put a whole file in place at once, durably."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        try:
            write_at(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:64] or "host"


def new_stem() -> str:
    return f"{time.time_ns():020d}-{host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def writer_is_alive(stem: str) -> bool:
    """Whether the process that named this shard may still run here. Of another host nothing is known: False."""
    named = re.fullmatch(rf"\d{{20}}-{re.escape(host())}-(\d+)-[0-9a-f]{{8}}", stem)
    if named is None:
        return False
    try:
        os.kill(int(named[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class ShardFile:
    """A shard open for reading, closed when nobody refers to it: no thread can close it under another's read."""

    def __init__(self, folder: Path, stem: str) -> None:
        # In this order: sealing may rename the file between the two attempts.
        for suffix in (".tar.open", ".tar"):
            with contextlib.suppress(FileNotFoundError):
                self.fd = os.open(folder / f"{stem}{suffix}", os.O_RDONLY)
                self.sealed = suffix == ".tar"
                break
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / f"{stem}.tar"))
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def scan(self, start: int = 0) -> tuple[np.ndarray, int]:
        """Read headers from `start` until one is unsound or its record is cut short.

        Returns:
            The records as `ROW`, in order of offset, and the position after the last of them.
        """
        rows, position, size = [], start, self.size
        while len(block := os.pread(self.fd, BLOCK, position)) == BLOCK:
            if (member := _MEMBER.match(block)) is None:
                break
            digits, name, key, crc, ext = member.groups()
            length, offset = int(digits, 8), position + BLOCK
            if block != header(name, length) or offset + padded(length) > size:
                break
            rows.append((*split_key(key.decode()), offset, length, int(crc, 16), ext, 0))
            position = offset + padded(length)
        return np.array(rows, ROW), position

    def torn_bytes(self) -> int:
        """Size of what follows the last sound record and is not the end of an archive."""
        end = self.scan()[1]
        rest = self.size - end
        return 0 if rest == len(TRAILER) and os.pread(self.fd, rest, end) == TRAILER else rest


def write_index(folder: Path, stem: str, rows: np.ndarray, size: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows[np.lexsort((rows["offset"], rows["lo"], rows["hi"]))])
    body = buffer.getvalue() + struct.pack("<Q", size)
    write_file(folder / f"{stem}.idx.npy", body + struct.pack("<I", zlib.crc32(body)))


def read_index(folder: Path, stem: str, size: int) -> np.ndarray | None:
    """Load a shard's index, or None if there is none, it is damaged, or it describes a shard of another size."""
    try:
        data = (folder / f"{stem}.idx.npy").read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < 12 or struct.unpack("<QI", data[-12:]) != (size, zlib.crc32(data[:-4])):
        return None
    rows = np.load(io.BytesIO(data), allow_pickle=False)
    return rows if rows.dtype == ROW else None


class ShardWriter:
    """A shard open for writing, by the process that made it and by nobody else, ever."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stem = folder, new_stem()
        self.path = folder / f"{self.stem}.tar.open"
        self.end = 0
        self._rows: list[tuple[int, int, int, int, int, bytes, int]] = []
        self._folder_synced = False
        with explained(self.path):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def append(self, key: str, payload: bytes, ext: str) -> None:
        crc, length = checksum(key, ext, payload), len(payload)
        record = b"".join((header(f"{key}-{crc:08x}.{ext}".encode(), length), payload, bytes(padded(length) - length)))
        try:
            with explained(self.path):
                write_at(self._fd, record, self.end)
            offset, self.end = self.end + BLOCK, self.end + len(record)
            self._rows.append((*split_key(key), offset, length, crc, ext.encode(), 0))
        except BaseException:
            # The next record goes to the same place anyway; this keeps a torn tail from staying if none follows.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.end)
            raise

    def sync(self) -> None:
        with explained(self.path):
            os.fsync(self._fd)
            if not self._folder_synced:
                sync_folder(self.folder)
                self._folder_synced = True

    def seal(self) -> None:
        """Finish the file, give it its final name, and write its index. A shard without records is removed."""
        final = self.folder / f"{self.stem}.tar"
        try:
            with explained(self.path):
                if not self._rows:
                    self.path.unlink(missing_ok=True)
                    return
                write_at(self._fd, TRAILER, self.end)
                os.fsync(self._fd)
                try:
                    os.rename(self.path, final)
                except FileNotFoundError:
                    if not final.exists():  # else `recover` on another host took this writer for dead: no harm done
                        raise
                sync_folder(self.folder)
                write_index(self.folder, self.stem, np.array(self._rows, ROW), os.fstat(self._fd).st_size)
        finally:
            self.close()

    def close(self) -> None:
        os.close(self._fd)
