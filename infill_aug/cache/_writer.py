"""Adding to a store."""

import contextlib
import errno
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from infill_aug.cache._shard import (
    MAX_PAYLOAD,
    InfillStoreError,
    ShardWriter,
    check_key,
    explained,
    make_folder,
    new_stem,
    write_at,
)

FLUSH_ITEMS, FLUSH_SECONDS = 64, 5.0

_EXT = re.compile(r"[a-z0-9]{1,4}")


class InfillStoreWriter:
    """Writes records to a shard of its own, and to a new one when that is full; made by `InfillStore.writer`.

    Any number of writers may work on a store at once. One writer belongs to one process; its threads may share it.
    A record can be read by others as soon as `put` has returned, and survives the process's death. It survives the
    machine's after `flush`, which happens by itself at every 64th record and at the first one after five seconds.

    Example:
        >>> import tempfile
        >>> from infill_aug.cache.store import InfillStore
        >>> folder = tempfile.TemporaryDirectory()
        >>> with InfillStore(folder.name).writer() as writer:
        ...     writer.put("f" * 32, b"payload", "raw")
        >>> InfillStore(folder.name).get("f" * 32)
        b'payload'
        >>> folder.cleanup()
    """

    def __init__(self, path: Path, shard_bytes: int) -> None:
        self._folder = path / "shards"
        self._failures = path / "failures" / f"{new_stem()}.jsonl"
        self._shard_bytes = shard_bytes
        self._shard: ShardWriter | None = None
        self._unsynced, self._synced = 0, time.monotonic()
        self._lock, self._pid, self._closed = threading.Lock(), os.getpid(), False
        with explained(self._folder):
            make_folder(self._folder)
            if not os.access(self._folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def __enter__(self) -> "InfillStoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, key: str, payload: bytes, ext: str) -> None:
        """Store a payload, whole or not at all.

        Args:
            key: 32 lowercase hexadecimal characters.
            payload: up to 1 GiB.
            ext: one to four lowercase letters or digits that say what it is, e.g. `webp`, `png`, `jpg`, `json`, `raw`.

        Raises:
            ValueError: if `key` or `ext` is malformed, or the payload too large.
            InfillStoreError: if the system refuses, e.g. because the disk is full. What was stored before stays
                readable, and the writer can go on once there is space.
        """
        check_key(key)
        if not (isinstance(ext, str) and _EXT.fullmatch(ext)):
            raise ValueError(f"ext is {ext!r}: it must be one to four lowercase letters or digits, such as 'webp'")
        payload = bytes(memoryview(payload))
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"the payload of {key} has {len(payload)} bytes: at most {MAX_PAYLOAD} fit in a record")
        with self._turn():
            if self._shard and self._shard.end >= self._shard_bytes:
                self._seal()
            if self._shard is None:
                self._shard = ShardWriter(self._folder)
            self._shard.append(key, payload, ext)
            self._unsynced += 1
            if self._unsynced >= FLUSH_ITEMS or time.monotonic() - self._synced >= FLUSH_SECONDS:
                self._sync()

    def record_failure(self, failure: dict[str, Any]) -> None:
        """Note that something could not be made; `InfillStore.failures` reads it back.

        Args:
            failure: a dictionary for `json.dumps`; what that does not know is written as a string.

        Raises:
            InfillStoreError: if the system refuses.
        """
        line = json.dumps(failure, default=str).encode() + b"\n"
        with self._turn(), explained(self._failures):
            make_folder(self._failures.parent)
            fd = os.open(self._failures, os.O_WRONLY | os.O_CREAT, 0o644)
            end = os.fstat(fd).st_size
            try:
                write_at(fd, line, end)
                os.fsync(fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, end)
                raise
            finally:
                os.close(fd)

    def flush(self) -> None:
        """Make what was put survive a power failure.

        Raises:
            InfillStoreError: if the system refuses.
        """
        with self._turn():
            self._sync()

    def close(self) -> None:
        """Seal the shard. A writer that has put nothing leaves no file; closing twice does nothing.

        Raises:
            InfillStoreError: if the system refuses; all records stay readable, and `InfillStore.recover` seals later.
        """
        if self._pid == os.getpid():
            with self._lock:
                self._closed = True
                self._seal()

    def _sync(self) -> None:
        if self._shard is not None and self._unsynced:
            self._shard.sync()
        self._unsynced, self._synced = 0, time.monotonic()

    def _seal(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.seal()
            self._unsynced = 0

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        # Before the lock, which may have been held by another thread when this process was forked.
        if self._pid != os.getpid():
            raise InfillStoreError("this writer belongs to the process it was forked from: open one in this process")
        with self._lock:
            if self._closed:
                raise InfillStoreError("this writer is closed: open a new one with InfillStore.writer()")
            yield
