"""The infill store: an embedded, append-only, content-addressed store of opaque byte payloads.

    store/STORE.json               {"format": "infill-store", "format_version": 1, "created_by": "infill_aug x.y.z"}
    store/shards/<shard>.tar       records of one writer; `.tar.open` while being written
    store/shards/<shard>.idx.npy   where they lie in it, written last
    store/documents/<name>.json    small documents, for people to read
    store/failures/<writer>.jsonl  one line for each recorded failure

`<shard>` is `<utc nanoseconds>-<host>-<pid>-<random>`, so that any number of writers on any hosts need no lock. Shards
are plain uncompressed tar files: `tar tf` lists them and webdataset reads them. A record is whole or absent: one that
was cut short or damaged is never returned. Among records of one key the one written last counts: the last by shard
name, which begins with the shard's creation time, and then by offset.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infill_aug.cache._index import Index, Record, Shard
from infill_aug.cache._shard import (
    BLOCK,
    InfillStoreError,
    ShardFile,
    check_key,
    checksum,
    explained,
    join_key,
    make_folder,
    padded,
    read_index,
    sync_folder,
    write_file,
    write_index,
    writer_is_alive,
)
from infill_aug.cache._writer import InfillStoreWriter

__all__ = [
    "InfillStore",
    "InfillStoreError",
    "InfillStoreWarning",
    "InfillStoreWriter",
    "PruneReport",
    "Record",
    "VerifyReport",
]

FORMAT, FORMAT_VERSION = "infill-store", 1
OPEN_FILES = 256

_DOCUMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class InfillStoreWarning(UserWarning):
    """A stored record is damaged and counts as absent."""


class VerifyReport(NamedTuple):
    """What reading everything found.

    Attributes:
        items: keys whose payload is intact.
        bytes: size of these payloads.
        corrupt: records that are damaged; their keys count as absent.
        torn_bytes: bytes that belong to no readable record, e.g. after a writer was killed.
        shards: number of shards.
        duplicates: records that a later one of the same key supersedes.
    """

    items: int
    bytes: int
    corrupt: list[Record]
    torn_bytes: int
    shards: int
    duplicates: int


class PruneReport(NamedTuple):
    """What pruning did, or would do.

    Attributes:
        kept: number of keys that stay.
        dropped: number of keys that go.
        bytes_freed: of shards, including superseded records.
    """

    kept: int
    dropped: int
    bytes_freed: int


class InfillStore:
    """A store of byte payloads under keys of 32 hexadecimal characters (see `infill_aug.key`).

    Reading never writes, locks or waits. A store may be used before and after fork, by threads, and be pickled to
    spawned workers; pickling carries the path, and the copy sees what is on disk when it is unpickled. What was written
    since opening, here or elsewhere, is seen after `refresh`.

    The attribute `corrupt_reads` counts the damaged records that `get` met.

    Args:
        path: local folder. Opening writes nothing unless the store is new.
        create: make the store if there is none.
        shard_bytes: a writer begins a new shard once one has this size.

    Raises:
        FileNotFoundError: if there is no store and `create` is false.
        InfillStoreError: if the folder is something else, is of a newer format, or can't be made.
        ValueError: if `path` is a URL.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = InfillStore(folder.name)
        >>> with store.writer() as writer:
        ...     writer.put("00112233445566778899aabbccddeeff", b"payload", "raw")
        >>> store.refresh()
        >>> store.get("00112233445566778899aabbccddeeff"), len(store)
        (b'payload', 1)
        >>> store.get("0" * 32) is None
        True
        >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], create: bool = True, shard_bytes: int = 256 * 2**20) -> None:
        if "://" in os.fspath(path):
            raise ValueError(
                f"{os.fspath(path)!r} is a URL, and this version opens local paths only: "
                "copy the store's folder to this machine (its shards are plain files) and give that path"
            )
        self.path = Path(os.path.abspath(path))
        self.shard_bytes = shard_bytes
        self.corrupt_reads = 0
        self._index = Index()
        self._files: dict[str, ShardFile] = {}
        self._pid = os.getpid()
        _check_or_create(self.path, create)
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.path), False, self.shard_bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} items)"

    def __len__(self) -> int:
        return len(self._index.rows)

    def __contains__(self, key: str) -> bool:
        return self._index.find(check_key(key)) is not None

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def keys(self) -> Iterator[str]:
        """Iterate over all keys, in ascending order."""
        rows = self._index.rows
        for start in range(0, len(rows), 65536):
            part = rows[start : start + 65536]
            yield from map(join_key, part["hi"].tolist(), part["lo"].tolist())

    def locate(self, key: str) -> Record | None:
        """Say where a payload lies, without reading it; None if the key is absent."""
        index = self._index
        found = index.find(check_key(key))
        return None if found is None else index.record(found)

    def get(self, key: str) -> bytes | None:
        """Read a payload and check it.

        Args:
            key: 32 lowercase hexadecimal characters.

        Returns:
            The payload, or None if the key is absent or its record is damaged; of damage the first case is warned of.

        Raises:
            ValueError: if `key` is malformed.
            InfillStoreError: if the system can't read the shard.
        """
        for _ in range(2):
            if (record := self.locate(key)) is None:
                return None
            try:
                payload = self._read(record)
            except FileNotFoundError:  # another process pruned the store: the record is gone or lies in a new shard
                self.refresh()
                continue
            if payload is None:
                self._warn_of(record)
            return payload
        return None

    def refresh(self) -> None:
        """See what was written since opening or the last refresh; next to free if that is nothing."""
        index, folder = self._index, self.path / "shards"
        # Sealing renames a shard, and a listing may miss a file that is renamed meanwhile. That happens once in the
        # life of a shard, so one of two listings has it.
        names = {*_listed(folder), *_listed(folder)}
        stems = sorted({_stem(name) for name in names if name.endswith((".tar", ".tar.open"))})
        if not {shard.stem for shard in index.shards}.issubset(stems):  # pruned: what was superseded may count again
            index = Index()
        shards = {shard.stem: shard for shard in index.shards}
        parts = []
        for stem in stems:
            shard = shards.get(stem, Shard(stem, len(shards)))
            if shard.sealed:
                continue
            with contextlib.suppress(FileNotFoundError):  # pruned since it was listed
                shards[stem], rows = shard.load(folder)
                parts.append(rows)
        self._index = index.merged(tuple(shards.values()), parts)

    def writer(self) -> InfillStoreWriter:
        """Open a writer with a shard of its own; use it in a `with` statement.

        Raises:
            InfillStoreError: if the store's folder can't be written to.
        """
        return InfillStoreWriter(self.path, self.shard_bytes)

    def write_document(self, name: str, obj: Any) -> None:
        """Write a small JSON document at once, replacing one of the same name.

        Args:
            name: letters, digits, `.`, `_` and `-`, without `.json`.
            obj: what `json.dumps` accepts, without NaN and infinity.

        Raises:
            ValueError: if `name` is malformed or `obj` holds a NaN.
            InfillStoreError: if the store's folder can't be written to.
        """
        path = self._document(name)
        text = json.dumps(obj, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with explained(path):
            make_folder(path.parent)
            write_file(path, text.encode())

    def read_document(self, name: str) -> Any:
        """Read a document; FileNotFoundError names those there are if there is none of this name."""
        try:
            return json.loads(self._document(name).read_bytes())
        except FileNotFoundError:
            there = ", ".join(self.documents()) or "none"
            raise FileNotFoundError(f"{self.path} has no document {name!r}; documents there: {there}") from None

    def documents(self, prefix: str = "") -> list[str]:
        """List the names of the documents that begin with `prefix`, in ascending order."""
        names = [name.removesuffix(".json") for name in _listed(self.path / "documents") if name.endswith(".json")]
        return sorted(name for name in names if name.startswith(prefix) and _DOCUMENT.fullmatch(name))

    def failures(self) -> list[dict[str, Any]]:
        """Read all recorded failures, in order of writer, then of time."""
        folder, records = self.path / "failures", []
        for name in sorted(_listed(folder)):
            for line in (folder / name).read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError):  # a line that a killed writer left half written
                    records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict)]

    def size_bytes(self) -> int:
        """Sum the sizes of all files of the store."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    def verify(self, progress: bool = False) -> VerifyReport:
        """Read every item and check it. Superseded records are counted, not read.

        Args:
            progress: show a progress bar.

        Returns:
            What was found. While a writer is active, the record that it is writing may count as torn.
        """
        self.refresh()
        index, folder = self._index, self.path / "shards"
        order = np.lexsort((index.rows["offset"], index.rows["shard"])).tolist()
        if progress:
            from tqdm import tqdm

            order = tqdm(order, desc="verify", unit="item")
        items, size, corrupt = 0, 0, []
        for i in order:
            record = index.record(i)
            if self._read(record) is None:
                corrupt.append(record)
            else:
                items, size = items + 1, size + record.length
        torn = sum(ShardFile(folder, shard.stem).torn_bytes() for shard in index.shards)
        duplicates = sum(shard.records for shard in index.shards) - len(index.rows)
        return VerifyReport(items, size, corrupt, torn, len(index.shards), duplicates)

    def recover(self) -> int:
        """Seal the shards that dead writers left open, and index those that have no sound index.

        No record is deleted; a torn tail stays where it is and is ignored. Call it while nobody writes: shards whose
        writer is alive on this host are left alone, but of other hosts nothing is known.

        Returns:
            The number of shards sealed or indexed.

        Raises:
            InfillStoreError: if the store's folder can't be written to.
        """
        folder, done = self.path / "shards", 0
        for name in sorted(_listed(folder)):
            stem, unsealed = _stem(name), name.endswith(".tar.open")
            if not name.endswith((".tar", ".tar.open")) or (unsealed and writer_is_alive(stem)):
                continue
            file = ShardFile(folder, stem)
            if not unsealed and read_index(folder, stem, file.size) is not None:
                continue
            with explained(folder / name):
                os.fsync(file.fd)
                if unsealed:
                    os.rename(folder / name, folder / f"{stem}.tar")
                    sync_folder(folder)
                write_index(folder, stem, file.scan()[0], file.size)
            done += 1
        self.refresh()
        return done

    def prune(self, keep: Iterable[str], dry_run: bool = True) -> PruneReport:
        """Remove all keys but those in `keep`, and all superseded and damaged records.

        Shards that hold something to remove are rewritten one after another: what stays is copied to a new shard and
        synced, then the old one is removed. A kill on the way loses nothing that was to be kept.

        Args:
            keep: keys to keep; those that the store lacks are ignored.
            dry_run: only say what would be done.

        Returns:
            What was done, or would be. A dry run does not look for damaged records.

        Raises:
            InfillStoreError: if a writer is active, or the store's folder can't be written to.
        """
        if dry_run:
            self.refresh()
        else:
            self.recover()
        index, folder = self._index, self.path / "shards"
        active = [shard.stem for shard in index.shards if not shard.sealed]
        if active and not dry_run:
            raise InfillStoreError(f"a writer is active in {folder / active[0]}: end it, then prune again")
        wanted = np.zeros(len(index.rows), bool)
        for key in keep:
            if (found := index.find(check_key(key))) is not None:
                wanted[found] = True
        rows = index.rows[wanted]
        staying = np.bincount(rows["shard"], minlength=len(index.shards))
        kept, freed = len(rows), 0
        # Oldest first: a superseded record has to go before the one that supersedes it.
        with contextlib.nullcontext() if dry_run else self.writer() as writer:
            for shard in sorted(index.shards):
                if 0 < staying[shard.number] == shard.records:
                    continue
                file = ShardFile(folder, shard.stem)
                moving = np.flatnonzero(wanted & (index.rows["shard"] == shard.number))
                moving = moving[np.argsort(index.rows["offset"][moving])]
                freed += file.size - sum(BLOCK + padded(length) for length in index.rows["length"][moving].tolist())
                if writer is None:
                    continue
                for record in map(index.record, moving.tolist()):
                    if (payload := self._read(record)) is None:
                        kept -= 1
                    else:
                        writer.put(record.key, payload, record.ext)
                writer.flush()
                with explained(folder / shard.stem):
                    (folder / f"{shard.stem}.tar").unlink()
                    (folder / f"{shard.stem}.idx.npy").unlink(missing_ok=True)
                    sync_folder(folder)
        self.refresh()
        return PruneReport(kept, len(index.rows) - kept, freed)

    def _document(self, name: str) -> Path:
        if not _DOCUMENT.fullmatch(name):
            raise ValueError(f"{name!r} can't name a document: use letters, digits, '.', '_' and '-', without '.json'")
        return self.path / "documents" / f"{name}.json"

    def _read(self, record: Record) -> bytes | None:
        """The payload, None if it is damaged, FileNotFoundError if the shard is gone."""
        if self._pid != os.getpid():
            self._files, self._pid = {}, os.getpid()
        try:
            file = self._files.pop(record.shard, None) or ShardFile(self.path / "shards", record.shard)
            payload = os.pread(file.fd, record.length, record.offset)
        except FileNotFoundError:
            raise
        except OSError as err:
            raise InfillStoreError(
                f"could not read shard {record.shard} of {self.path}: {err.strerror}. Check the disk or network mount"
            ) from err
        self._files[record.shard] = file
        if len(self._files) > OPEN_FILES:
            self._files.pop(next(iter(self._files.copy())), None)
        sound = len(payload) == record.length and checksum(record.key, record.ext, payload) == record.crc
        return payload if sound else None

    def _warn_of(self, record: Record) -> None:
        self.corrupt_reads += 1
        if self.corrupt_reads == 1:
            warnings.warn(
                f"{record.key} in shard {record.shard} of {self.path} is damaged and counts as absent. Others are only "
                "counted: verify() lists them, prune() removes them, a new build makes them again",
                InfillStoreWarning,
                stacklevel=3,
            )


def _listed(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _stem(name: str) -> str:
    return name.removesuffix(".open").removesuffix(".tar")


def _check_or_create(path: Path, create: bool) -> None:
    """Check that a store of this format is at `path`, or make one in a new or empty folder."""
    marker = path / "STORE.json"
    if path.exists() and not path.is_dir():
        raise InfillStoreError(f"{path} is a file, not an infill store: give a folder")
    if _listed(path) and not marker.exists():
        raise InfillStoreError(f"{path} is not an infill store, but has other files in it: give a new or empty folder")
    if not marker.exists():
        if not create:
            raise FileNotFoundError(
                f"there is no infill store at {path}: make one with `infill-aug build` or `infill_aug.build_cache`"
            )
        try:
            package = importlib.metadata.version("infill-aug")
        except importlib.metadata.PackageNotFoundError:
            package = "0"
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "created_by": f"infill_aug {package}"}
        with explained(path):
            make_folder(path)
            write_file(marker, json.dumps(about).encode() + b"\n")
    try:
        about = json.loads(marker.read_bytes())
        version = about["format_version"] if about["format"] == FORMAT else None
    except (ValueError, TypeError, KeyError):
        version = None
    if not isinstance(version, int):
        raise InfillStoreError(f"{marker} does not describe an infill store: give another folder")
    if version > FORMAT_VERSION:
        raise InfillStoreError(
            f"{path} has format version {version}, and this infill_aug reads up to {FORMAT_VERSION}: upgrade infill_aug"
        )
