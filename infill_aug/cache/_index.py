"""What a reader knows: which shards there are, and where each key's record lies.

Plain sorted arrays, no dictionary of keys: they hold ten million keys in half a gigabyte, and forked workers share
them, where a dictionary's reference counts would copy its pages into every worker.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infill_aug.cache._shard import ROW, ShardFile, join_key, read_index, split_key


class Record(NamedTuple):
    """Where a payload lies.

    Attributes:
        key: 32 hexadecimal characters.
        shard: name of the shard, without its suffix.
        offset: of the payload in the shard, in bytes.
        length: of the payload, in bytes.
        crc: crc32 of `b"<key>.<ext>"` followed by the payload.
        ext: what kind of payload it is, as the writer said.
    """

    key: str
    shard: str
    offset: int
    length: int
    crc: int
    ext: str


class Shard(NamedTuple):
    """A shard as far as it has been read: up to the position `end`."""

    stem: str
    number: int
    sealed: bool = False
    end: int = 0
    records: int = 0

    def load(self, folder: Path) -> tuple["Shard", np.ndarray]:
        """Read on; FileNotFoundError if the shard is gone."""
        file = ShardFile(folder, self.stem)
        rows = read_index(folder, self.stem, file.size) if file.sealed and not self.end else None
        end = file.size
        if rows is None:
            rows, end = file.scan(self.end)
        rows["shard"] = self.number
        return self._replace(sealed=file.sealed, end=end, records=self.records + len(rows)), rows


class Index(NamedTuple):
    """A consistent snapshot: one row for each key, in order of key, and a contiguous copy of column `hi` to search."""

    shards: tuple[Shard, ...] = ()
    rows: np.ndarray = np.empty(0, ROW)
    hi: np.ndarray = np.empty(0, np.uint64)

    def merged(self, shards: tuple[Shard, ...], parts: Sequence[np.ndarray]) -> "Index":
        """Add records of new or grown shards; `shards` are all shards by number."""
        if not any(len(part) for part in parts):
            return self._replace(shards=shards)
        rows = np.concatenate([self.rows, *parts])
        age = np.argsort(np.argsort([shard.stem for shard in shards]))
        # The sort is stable, and records of one shard are in order of offset already.
        rows = rows[np.lexsort((age[rows["shard"]], rows["lo"], rows["hi"]))]
        last = np.ones(len(rows), bool)
        last[:-1] = (rows["hi"][1:] != rows["hi"][:-1]) | (rows["lo"][1:] != rows["lo"][:-1])
        rows = rows if last.all() else rows[last]
        return Index(shards, rows, rows["hi"].astype(np.uint64))

    def find(self, key: str) -> int | None:
        """The row of a key, if there is one."""
        hi, lo = split_key(key)
        # A Python int might be compared as a float, which does not hold 64 bits.
        row = int(self.hi.searchsorted(np.uint64(hi)))
        while row < len(self.hi) and (found := self.rows.item(row))[0] == hi:
            if found[1] == lo:
                return row
            row += 1
        return None

    def record(self, row: int) -> Record:
        hi, lo, offset, length, crc, ext, shard = self.rows.item(row)
        return Record(join_key(hi, lo), self.shards[shard].stem, offset, length, crc, ext.decode())
