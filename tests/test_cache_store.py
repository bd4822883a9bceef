import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infill_aug.cache import _shard, _writer, store
from infill_aug.cache.store import InfillStore, InfillStoreError, InfillStoreWarning
from infill_aug.key import digest

ROOT = str(Path(store.__file__).parents[2])
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
PROC = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at this process's descriptors in /proc")
PAYLOADS = st.binary(max_size=1500)
GOLDEN_SHARD = "7c8d84281dc94e1acedcc50091123d30659638c49b61ed95104533b1c0c777cd"
KEYS = st.binary(min_size=16, max_size=16).map(bytes.hex)


def payload(i, size=None):
    return hashlib.shake_128(str(i).encode()).digest(37 * (i % 40) if size is None else size)


def fill(path, numbers, size=None):
    with InfillStore(path).writer() as writer:
        for i in numbers:
            writer.put(digest(i), payload(i, size), "webp")


def everything(opened):
    return {key: opened.get(key) for key in opened}


def contents(path):
    """Everything that can be read from a newly opened store."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfillStoreWarning)
        opened = InfillStore(path)
        return {key: found for key in opened if (found := opened.get(key)) is not None}


def expected(numbers, size=None):
    return {digest(i): payload(i, size) for i in numbers}


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def shards(path, suffix=".tar"):
    return sorted(file for file in (Path(path) / "shards").iterdir() if file.name.endswith(suffix))


def run(code, *args, **options):
    """Start a process that knows `payload`."""
    head = (
        "import hashlib, os, sys\nfrom infill_aug.key import digest\n"
        "from infill_aug.cache.store import InfillStore, InfillStoreError\n"
        "def payload(i, size):\n    return hashlib.shake_128(str(i).encode()).digest(size)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    """Killing a process loses nothing that the system has, so syncing costs time here and changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


# --- what goes in comes out ---


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(KEYS, PAYLOADS, st.sampled_from(["webp", "png", "jpg", "json", "raw"]))), st.integers(1, 4000)
)
def test_every_payload_comes_back_from_a_reopened_store(items, shard_bytes):
    with tempfile.TemporaryDirectory() as path:
        with InfillStore(path, shard_bytes=shard_bytes).writer() as writer:
            for key, data, ext in items:
                writer.put(key, data, ext)
        last = {key: (data, ext) for key, data, ext in items}
        opened = InfillStore(path, create=False)
        assert list(opened.keys()) == sorted(last)
        assert len(opened) == len(last)
        for key, (data, ext) in last.items():
            assert key in opened
            assert opened.get(key) == data
            record = opened.locate(key)
            assert (record.key, record.length, record.ext) == (key, len(data), ext)
        assert opened.verify() == (len(last), sum(len(d) for d, _ in last.values()), [], 0, len(shards(path)),
                                   len(items) - len(last))  # fmt: skip


def test_keys_with_zero_and_ff_bytes_are_different_keys(tmp_path):
    edges = ["00" * 16, "00" * 15 + "01", "01" + "00" * 15, "ff" * 16, "ff" * 15 + "00", "00" + "ff" * 15]
    middles = ["00" * 8 + "ff" * 8, "ff" * 8 + "00" * 8, "80" + "00" * 15, "7f" + "ff" * 15, "ff" * 7 + "fe" + "00" * 8]
    keys = edges + middles
    with InfillStore(tmp_path).writer() as writer:
        for key in keys[::2]:
            writer.put(key, key.encode(), "raw")
    opened = InfillStore(tmp_path)
    for i, key in enumerate(keys):
        assert opened.get(key) == (key.encode() if i % 2 == 0 else None)
        assert (key in opened) == (i % 2 == 0)
    assert list(opened.keys()) == sorted(keys[::2])


@pytest.mark.parametrize("key", ["", "0" * 31, "0" * 33, "0" * 31 + "A", "g" * 32, "0" * 31 + "\n", b"0" * 32, None, 7])
def test_malformed_keys_are_refused_everywhere(tmp_path, key):
    opened = InfillStore(tmp_path)
    for use in (opened.get, opened.locate, opened.__contains__, lambda key: opened.prune([key])):
        with pytest.raises(ValueError, match="is no key: it must be 32 lowercase hexadecimal"):
            use(key)
    with opened.writer() as writer, pytest.raises(ValueError, match="is no key"):
        writer.put(key, b"", "raw")


@pytest.mark.parametrize("ext", ["", "WEBP", "a.b", "a/b", "jpeg2", "é", None])
def test_malformed_extensions_are_refused(tmp_path, ext):
    with InfillStore(tmp_path).writer() as writer, pytest.raises(ValueError, match="one to four lowercase"):
        writer.put("0" * 32, b"", ext)
    assert not shards(tmp_path)


def test_payloads_are_bytes_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(_writer, "MAX_PAYLOAD", 10)
    with InfillStore(tmp_path).writer() as writer:
        writer.put("0" * 32, memoryview(bytearray(range(20)))[::2], "raw")
        with pytest.raises(ValueError, match="has 11 bytes: at most 10"):
            writer.put("1" * 32, bytes(11), "raw")
        for wrong in ("text", 3, None):
            with pytest.raises(TypeError):
                writer.put("1" * 32, wrong, "raw")
    assert contents(tmp_path) == {"0" * 32: bytes(range(0, 20, 2))}


def test_the_later_record_of_a_key_wins_whatever_the_reader_has_seen_before(tmp_path):
    early = InfillStore(tmp_path)
    first, second = early.writer(), early.writer()
    key = "a" * 32
    first.put(key, b"first shard, 1", "raw")
    second.put(key, b"second shard, 1", "raw")
    early.refresh()
    assert early.get(key) == b"second shard, 1"
    first.put(key, b"first shard, 2", "raw")
    early.refresh()
    assert early.get(key) == InfillStore(tmp_path).get(key) == b"second shard, 1"
    second.put(key, b"second shard, 2", "raw")
    first.close()
    second.close()
    early.refresh()
    assert early.get(key) == InfillStore(tmp_path).get(key) == b"second shard, 2"
    assert early.verify().duplicates == InfillStore(tmp_path).verify().duplicates == 3


def test_all_readers_agree_on_the_winner_though_a_writer_s_clock_is_behind(tmp_path, monkeypatch):
    fill(tmp_path, [1], 100)
    early = InfillStore(tmp_path)
    monkeypatch.setattr(_shard.time, "time_ns", lambda: 1)
    fill(tmp_path, [1, 2], 50)
    early.refresh()
    assert everything(early) == contents(tmp_path) == {digest(1): payload(1, 100), digest(2): payload(2, 50)}


def test_a_shard_is_rolled_when_it_passes_its_size(tmp_path):
    with InfillStore(tmp_path, shard_bytes=10_000).writer() as writer:
        for i in range(20):
            writer.put(digest(i), payload(i, 3000), "raw")
    assert [file.stat().st_size for file in shards(tmp_path)] == [3 * 3584 + 1024] * 6 + [2 * 3584 + 1024]
    assert contents(tmp_path) == expected(range(20), 3000)


# --- the format ---


def test_the_bytes_of_a_shard_never_change(tmp_path):
    fill(tmp_path, range(30))
    assert hashlib.sha256(shards(tmp_path)[0].read_bytes()).hexdigest() == GOLDEN_SHARD
    about = json.loads((tmp_path / "STORE.json").read_text())
    assert (about["format"], about["format_version"]) == ("infill-store", 1)
    assert about["created_by"].startswith("infill_aug ")


def test_tar_and_tarfile_list_a_sealed_shard(tmp_path):
    fill(tmp_path, range(12))
    names = subprocess.run(["tar", "tf", shards(tmp_path)[0]], check=True, capture_output=True, text=True)
    assert names.stderr == ""
    with tarfile.open(shards(tmp_path)[0]) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == names.stdout.split()
        for i, member in enumerate(members):
            key, crc, ext = member.name.replace("-", ".").split(".")
            assert (key, ext, member.mtime, member.uid, member.gid, member.mode) == (digest(i), "webp", 0, 0, 0, 0o644)
            assert archive.extractfile(member).read() == payload(i)
            assert int(crc, 16) == _shard.checksum(key, ext, payload(i))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it to the collector
def test_webdataset_iterates_a_sealed_shard(tmp_path):
    import webdataset

    fill(tmp_path, range(12))
    dataset = webdataset.WebDataset(str(shards(tmp_path)[0]), shardshuffle=False)
    assert {sample["__key__"][:32]: sample["webp"] for sample in dataset} == expected(range(12))


def test_an_index_is_an_npy_file(tmp_path):
    fill(tmp_path, range(12))
    rows = np.load(shards(tmp_path, ".idx.npy")[0], mmap_mode="r")
    assert [f"{hi:016x}{lo:016x}" for hi, lo in zip(rows["hi"], rows["lo"], strict=True)] == sorted(expected(range(12)))


# --- opening ---


def test_opening_writes_nothing_unless_the_store_is_new(tmp_path):
    InfillStore(tmp_path / "a" / "b")
    assert list(files(tmp_path)) == ["a/b/STORE.json"]
    fill(tmp_path / "a" / "b", range(3))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    opened = InfillStore(tmp_path / "a" / "b")
    assert opened.get(digest(1)) == payload(1)
    opened.refresh()
    opened.verify()
    opened.prune([])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_missing_store_is_not_created_when_only_reading_was_asked(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(FileNotFoundError, match=r"no infill store at .*: make one with `infill-aug build`"):
            InfillStore(path, create=False)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (
            '{"format": "infill-store", "format_version": 2}',
            "has format version 2, .* reads up to 1: upgrade infill_aug",
        ),
        ('{"format": "infill-store"}', "does not describe an infill store"),
        ('{"format": "other", "format_version": 1}', "does not describe an infill store"),
        ('{"format": "infill-store", "format_version": "1"}', "does not describe an infill store"),
        ("[]", "does not describe an infill store"),
        ("", "does not describe an infill store"),
        (None, "has other files in it: give a new or empty folder"),
    ],
)
def test_newer_and_foreign_folders_are_refused_in_one_sentence_and_left_alone(tmp_path, marker, message):
    (tmp_path / "file.txt").write_text("mine")
    if marker is not None:
        (tmp_path / "STORE.json").write_text(marker)
    before = files(tmp_path)
    for create in (True, False):
        with pytest.raises(InfillStoreError, match=message):
            InfillStore(tmp_path, create=create)
    assert files(tmp_path) == before


def test_a_file_and_a_url_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InfillStoreError, match="is a file, not an infill store"):
        InfillStore(tmp_path / "file")
    for url in ("s3://bucket/store", "file:///store"):
        with pytest.raises(ValueError, match="only: copy the store's folder to this machine"):
            InfillStore(url)


def test_a_store_follows_neither_the_working_directory_nor_the_form_of_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill("store", range(3))
    opened = InfillStore("store")
    monkeypatch.chdir("/")
    assert opened.get(digest(2)) == pickle.loads(pickle.dumps(opened)).get(digest(2)) == payload(2)
    assert opened.path == tmp_path / "store"


@pytest.fixture
def public_path():
    """A folder that an unprivileged user may enter."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def unprivileged(public_path):
    """Drop root's power to write anywhere, for as long as a test runs."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def read_only(public_path):
    fill(public_path / "store", range(5))
    folders = [public_path / "store", public_path / "store" / "shards"]
    for folder in folders:
        folder.chmod(0o555)
    yield public_path / "store"
    for folder in folders:
        folder.chmod(0o755)


def test_a_read_only_store_can_be_read_and_a_writer_says_why_it_can_not_write(read_only, unprivileged):
    opened = InfillStore(read_only)
    assert everything(opened) == expected(range(5))
    assert opened.verify().items == 5
    for attempt in (opened.writer, lambda: opened.write_document("x", 1), lambda: InfillStore(read_only / "new")):
        with pytest.raises(InfillStoreError, match=rf"could not write {read_only}.*: Permission denied\."):
            attempt()


# --- readers while others write ---


def test_a_record_is_visible_to_new_readers_at_once_and_to_old_ones_after_refresh(tmp_path):
    early = InfillStore(tmp_path)
    with early.writer() as writer:
        for i in range(10):
            writer.put(digest(i), payload(i), "raw")
            assert contents(tmp_path) == expected(range(i + 1))
            assert digest(i) not in early
            early.refresh()
            assert everything(early) == expected(range(i + 1))
    assert early.get(digest(3)) == payload(3)
    early.refresh()
    assert everything(early) == expected(range(10))


def test_sealing_does_not_disturb_a_reader_that_has_not_opened_the_shard(tmp_path):
    writer = InfillStore(tmp_path).writer()
    writer.put(digest(1), payload(1), "raw")
    early = InfillStore(tmp_path)
    writer.close()
    assert early.get(digest(1)) == payload(1)


def test_a_shard_sealed_between_two_attempts_to_open_it_is_found(tmp_path, monkeypatch):
    writer = InfillStore(tmp_path).writer()
    writer.put(digest(1), payload(1), "raw")
    system_open = os.open

    def sealing_after(*args):
        monkeypatch.undo()
        try:
            return system_open(*args)
        finally:
            writer.close()

    monkeypatch.setattr(os, "open", sealing_after)
    assert contents(tmp_path) == expected([1])


def test_refreshing_an_open_shard_reads_on_from_where_it_stopped(tmp_path, monkeypatch):
    with InfillStore(tmp_path).writer() as writer:
        writer.put(digest(1), payload(1, 1000), "raw")
        opened = InfillStore(tmp_path)
        starts = []
        scan = _shard.ShardFile.scan
        monkeypatch.setattr(_shard.ShardFile, "scan", lambda self, start=0: starts.append(start) or scan(self, start))
        writer.put(digest(2), payload(2, 1000), "raw")
        opened.refresh()
        opened.refresh()
    opened.refresh()
    opened.refresh()
    assert starts == [1536, 3072, 3072]


def test_a_listing_that_misses_a_shard_being_renamed_does_not_lose_it(tmp_path, monkeypatch):
    fill(tmp_path, range(3))
    opened, folders = InfillStore(tmp_path), []
    listdir = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda folder: folders.append(folder) or (listdir(folder) if folders[1:] else [])
    )
    opened.refresh()
    assert folders == [tmp_path / "shards"] * 2
    assert everything(opened) == expected(range(3))


def _hash_all(opened, keys, results):
    results.put([hashlib.sha256(opened.get(key)).hexdigest() for key in keys])


@FORKS
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_what_their_parent_reads_with_a_handle_it_has_used(tmp_path, method):
    fill(tmp_path, range(200), 3000)
    opened = InfillStore(tmp_path)
    keys = [digest(i) for i in random.Random(0).choices(range(200), k=512)]
    wanted = [hashlib.sha256(opened.get(key)).hexdigest() for key in keys]
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    workers = [context.Process(target=_hash_all, args=(opened, keys, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    mine = [hashlib.sha256(opened.get(key)).hexdigest() for key in keys]
    assert [mine, results.get(), results.get()] == [wanted] * 3
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def test_a_pickled_store_carries_its_path_and_options_only(tmp_path):
    fill(tmp_path, range(500), 10)
    opened = InfillStore(tmp_path, shard_bytes=123)
    opened.get(digest(1))
    pickled = pickle.dumps(opened)
    assert len(pickled) < 300
    copy = pickle.loads(pickled)
    assert (copy.path, copy.shard_bytes, len(copy)) == (opened.path, 123, 500)
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickled)
    assert not tmp_path.exists()


@PROC
def test_threads_share_a_reader_of_more_shards_than_it_keeps_open(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OPEN_FILES", 3)
    with InfillStore(tmp_path, shard_bytes=1).writer() as writer:
        for i in range(20):
            writer.put(digest(i), payload(i, 500), "raw")
    opened = InfillStore(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    wrong = []

    def read(seed):
        for i in random.Random(seed).choices(range(20), k=300):
            if opened.get(digest(i)) != payload(i, 500):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(os.listdir("/proc/self/fd")) <= before + 4


# --- writers ---


def test_a_writer_that_put_nothing_leaves_no_file(tmp_path):
    with InfillStore(tmp_path).writer() as writer:
        writer.flush()
    writer.close()
    assert list(files(tmp_path)) == ["STORE.json"]


def test_an_error_in_the_with_block_still_seals_what_was_put(tmp_path):
    def build():
        with InfillStore(tmp_path).writer() as writer:
            writer.put(digest(0), payload(0), "raw")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert contents(tmp_path) == expected(range(1))
    assert not shards(tmp_path, ".open")


def test_a_closed_writer_refuses(tmp_path):
    writer = InfillStore(tmp_path).writer()
    writer.close()
    for use in (lambda: writer.put("0" * 32, b"", "raw"), writer.flush, lambda: writer.record_failure({})):
        with pytest.raises(InfillStoreError, match="writer is closed: open a new one"):
            use()


def _use_forked(writer, results):
    try:
        writer.put(digest(99), b"", "raw")
    except InfillStoreError as err:
        results.put(str(err))
    writer.close()


@FORKS
def test_a_forked_process_can_not_write_to_its_parents_shard_nor_seal_it(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with InfillStore(tmp_path).writer() as writer:
        writer.put(digest(0), payload(0), "raw")
        with writer._lock:  # as if another thread of the parent were writing
            child = context.Process(target=_use_forked, args=(writer, results))
            child.start()
            child.join()
        assert "belongs to the process it was forked from: open one in this process" in results.get()
        assert len(shards(tmp_path, ".open")) == 1
        writer.put(digest(1), payload(1), "raw")
    assert contents(tmp_path) == expected(range(2))


def test_threads_may_share_a_writer(tmp_path):
    with InfillStore(tmp_path, shard_bytes=20_000).writer() as writer:

        def write(first):
            for i in range(first, first + 60):
                writer.put(digest(i), payload(i), "raw")

        threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 240, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert contents(tmp_path) == expected(range(240))
    assert InfillStore(tmp_path).verify().torn_bytes == 0


@PROC
def test_records_are_synced_every_64_items_or_5_seconds_and_on_flush(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_writer.time, "monotonic", lambda: now[0])
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    with InfillStore(tmp_path).writer() as writer:
        synced.clear()
        for i in range(63):
            writer.put(digest(i), b"", "raw")
        assert synced == []
        writer.put(digest(63), b"", "raw")
        assert [Path(path).name[-9:] for path in synced] == [".tar.open", "shards"]
        now[0] = 4.9
        writer.put(digest(64), b"", "raw")
        assert len(synced) == 2
        now[0] = 5.0
        writer.put(digest(65), b"", "raw")
        assert len(synced) == 3
        writer.flush()
        assert len(synced) == 3
        writer.put(digest(66), b"", "raw")
        writer.flush()
        assert len(synced) == 4


@PROC
def test_a_shard_gets_its_name_after_its_bytes_are_safe_and_its_index_after_that(tmp_path, monkeypatch):
    calls = []

    def noted(name):
        call = getattr(os, name)

        def wrapped(target, *args):
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
            calls.append(f"{name} {path.rpartition('-')[2][8:] if '-' in Path(path).name else Path(path).name}")
            return call(target, *args)

        return wrapped

    writer = InfillStore(tmp_path).writer()
    writer.put(digest(0), b"", "raw")
    for name in ("pwrite", "fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    writer.close()
    safe = ["pwrite .tar.open", "fsync .tar.open", "rename .tar.open", "fsync shards"]
    assert calls[:4] == safe
    assert [call.split()[0] for call in calls[4:]] == ["pwrite", "fsync", "replace", "fsync"]
    assert all(".idx.npy" in call for call in calls[4:7])


WRITE = """
path, first, last, size = sys.argv[1], *map(int, sys.argv[2:])
with InfillStore(path, shard_bytes=size * 100).writer() as writer:
    os.write(1, b"ready\\n")
    for i in range(first, last):
        writer.put(digest(i), payload(i, size), "raw")
        os.write(1, b"%d\\n" % i)
"""


def acknowledged_before_kill(process, count):
    """Numbers that a writer acknowledged until it was killed, which happens after `count` of them."""
    lines = [process.stdout.readline() for _ in range(count + 1)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    assert process.wait() == -signal.SIGKILL
    return [int(line) for line in lines[1:]]


@pytest.mark.parametrize("count", [2, 4])
def test_writers_at_once_with_common_keys_lose_nothing_though_one_is_killed(tmp_path, count):
    InfillStore(tmp_path)
    ranges = [(200 * k, 200 * k + 300) for k in range(count - 1)]
    others = [run(WRITE, tmp_path, first, last, 2000) for first, last in ranges]
    with run(WRITE, tmp_path, 100, 10**9, 2000) as victim:
        numbers = set(acknowledged_before_kill(victim, 250))
    for other, (first, last) in zip(others, ranges, strict=True):
        with other:
            assert len(other.stdout.readlines()) == 1 + last - first
        numbers.update(range(first, last))
    in_flight = expected([*numbers, max(numbers) + 1], 2000)
    found = contents(tmp_path)
    assert expected(numbers, 2000).items() <= found.items() <= in_flight.items()
    assert InfillStore(tmp_path).recover() == 1
    assert not shards(tmp_path, ".open")
    assert contents(tmp_path) == found
    assert InfillStore(tmp_path).verify().duplicates > 0


@pytest.mark.parametrize("trial", range(5))
def test_a_writer_killed_at_any_moment_keeps_all_it_acknowledged(tmp_path, trial):
    with run(WRITE, tmp_path, 0, 10**9, 30_000) as victim:
        numbers = acknowledged_before_kill(victim, random.Random(trial).randrange(120))
    found = contents(tmp_path)
    assert found in (expected(numbers, 30_000), expected([*numbers, len(numbers)], 30_000))
    with run(WRITE, tmp_path, 0, len(numbers) + 5, 30_000) as rerun:
        rerun.stdout.read()
    assert contents(tmp_path) == expected(range(len(numbers) + 5), 30_000)


def test_readers_never_lose_sight_of_a_record_while_shards_are_sealed(tmp_path):
    InfillStore(tmp_path)
    early, least = InfillStore(tmp_path), 0
    with run(WRITE, tmp_path, 0, 200, 0) as writer:
        while writer.poll() is None:
            opened = InfillStore(tmp_path)
            early.refresh()
            for reader in (opened, early):
                assert everything(reader) == expected(range(len(reader)), 0)
                assert len(reader) >= least
                least = len(reader)
        assert len(writer.stdout.readlines()) == 201
    assert contents(tmp_path) == expected(range(200), 0)
    assert len(shards(tmp_path)) == 200


# --- damage ---


def test_every_prefix_of_a_shard_holds_the_records_that_are_whole_in_it_and_nothing_else(tmp_path):
    fill(tmp_path, [3, 0, 17, 26])
    sealed = shards(tmp_path)[0]
    ends = [512 + 512, 1024 + 512, 1536 + 1536, 3072 + 1536]
    assert sealed.stat().st_size == ends[-1] + 1024
    shards(tmp_path, ".idx.npy")[0].unlink()
    torn = sealed.rename(sealed.with_suffix(".tar.open"))
    for size in range(sealed_size := torn.stat().st_size, -1, -1):
        os.truncate(torn, size)
        whole = sum(end <= size for end in ends)
        assert contents(tmp_path) == expected([3, 0, 17, 26][:whole])
    assert sealed_size == 5632


@pytest.mark.parametrize("size", [0, 1, 511, 600, 1024, 2000, 3072, 4607, 4608, 5000, 5120])
def test_recovery_keeps_every_record_that_was_readable_and_every_byte(tmp_path, size):
    fill(tmp_path, [3, 0, 17, 26])
    sealed = shards(tmp_path)[0]
    shards(tmp_path, ".idx.npy")[0].unlink()
    name = "00000000000000000001-elsewhere-1-00000000"
    torn = sealed.rename(sealed.with_name(f"{name}.tar.open"))
    os.truncate(torn, size)
    before, data = contents(tmp_path), torn.read_bytes()
    opened = InfillStore(tmp_path)
    assert opened.recover() == 1
    assert opened.recover() == 0
    assert everything(opened) == contents(tmp_path) == before
    assert [path.name for path in shards(tmp_path, "")] == [f"{name}.idx.npy", f"{name}.tar"]
    assert shards(tmp_path)[0].read_bytes() == data
    assert opened.verify().torn_bytes == size - (0, 1024, 1536, 3072, 4608)[len(before)]


@pytest.mark.parametrize("indexed", [True, False])
def test_no_flipped_bit_makes_a_wrong_payload(tmp_path, indexed):
    fill(tmp_path, range(20))
    names = [shards(tmp_path)[0], shards(tmp_path, ".idx.npy")[0]]
    if not indexed:
        names.pop().unlink()
    wanted, rng, lost = expected(range(20)), random.Random(0), 0
    for _ in range(300):
        path = rng.choice(names)
        data = path.read_bytes()
        flipped = bytearray(data)
        flips = rng.choice([1, 1, 1, 2, 8])
        for _ in range(flips):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        found = contents(tmp_path)
        assert found.items() <= wanted.items()
        lost += found != wanted
        assert len(found) >= len(wanted) - flips or not indexed
        path.write_bytes(data)
    assert lost > 0
    assert contents(tmp_path) == wanted


def test_a_scan_stops_at_a_header_of_which_any_bit_is_flipped(tmp_path):
    fill(tmp_path, [3, 17, 26])
    shards(tmp_path, ".idx.npy")[0].unlink()
    path = shards(tmp_path)[0]
    data = path.read_bytes()
    for at in range(1024, 1536):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        opened = InfillStore(tmp_path)
        assert everything(opened) == expected([3])
        assert opened.verify().torn_bytes == len(data) - 1024


def test_two_flips_in_a_header_that_keep_its_sum_do_not_serve_a_payload_under_another_key(tmp_path):
    fill(tmp_path, range(3))
    shards(tmp_path, ".idx.npy")[0].unlink()
    path = shards(tmp_path)[0]
    data = bytearray(path.read_bytes())
    at = next(i for i in range(31) if data[i : i + 2] == bytes(sorted(data[i : i + 2])) and data[i] < data[i + 1])
    data[at], data[at + 1] = data[at + 1], data[at]
    path.write_bytes(data)
    assert len(InfillStore(tmp_path)) == 3
    assert contents(tmp_path) == expected([1, 2])


def damage(tmp_path, number):
    opened = InfillStore(tmp_path)
    record = opened.locate(digest(number))
    path = tmp_path / "shards" / f"{record.shard}.tar"
    data = bytearray(path.read_bytes())
    data[record.offset] ^= 1
    path.write_bytes(data)
    return record


def test_a_damaged_record_is_absent_warned_of_once_counted_and_reported(tmp_path):
    fill(tmp_path, range(1, 6))
    records = [damage(tmp_path, 2), damage(tmp_path, 4)]
    opened = InfillStore(tmp_path)
    with pytest.warns(
        InfillStoreWarning, match=f"{records[0].key} in shard .* is damaged and counts as absent"
    ) as caught:
        found = [opened.get(digest(i)) for i in (1, 2, 3, 4, 1, 2, 3, 4)]
    assert found == [payload(1), None, payload(3), None] * 2
    assert [warning.filename for warning in caught] == [__file__]
    assert opened.corrupt_reads == 4
    report = opened.verify()
    assert report.corrupt == records
    assert (report.items, report.bytes, report.torn_bytes) == (3, sum(len(payload(i)) for i in (1, 3, 5)), 0)
    assert opened.corrupt_reads == 4
    fill(tmp_path, [2, 4])
    assert contents(tmp_path) == expected(range(1, 6))


def test_without_a_sound_index_the_shard_is_scanned(tmp_path):
    fill(tmp_path, range(9))
    path = shards(tmp_path, ".idx.npy")[0]
    sound = path.read_bytes()
    other = tmp_path / "other"
    fill(other, range(5))
    for data in (b"", sound[:11], sound[:-1], sound[1:], b"x" * 500, shards(other, ".idx.npy")[0].read_bytes()):
        path.write_bytes(data)
        assert contents(tmp_path) == expected(range(9))
    assert InfillStore(tmp_path).recover() == 1
    assert path.read_bytes() == sound


def test_recovery_leaves_the_shards_of_living_writers_alone(tmp_path):
    writer = InfillStore(tmp_path).writer()
    writer.put(digest(0), payload(0), "raw")
    assert InfillStore(tmp_path).recover() == 0
    writer.put(digest(1), payload(1), "raw")
    writer.close()
    assert contents(tmp_path) == expected(range(2))


def test_a_writer_taken_for_dead_loses_nothing(tmp_path, monkeypatch):
    writer = InfillStore(tmp_path).writer()
    writer.put(digest(0), payload(0), "raw")
    with monkeypatch.context() as patch:
        patch.setattr(store, "writer_is_alive", lambda stem: False)
        assert InfillStore(tmp_path).recover() == 1
    writer.put(digest(1), payload(1), "raw")
    assert contents(tmp_path) == expected(range(2))
    writer.close()
    assert contents(tmp_path) == expected(range(2))
    assert len(shards(tmp_path, "")) == 2


# --- crash points ---


class Died(BaseException):
    """The process is dead: no cleanup of it has an effect."""


class Death:
    """At the k-th system call that changes something, do `share` of it, and nothing ever after."""

    CALLS = ("open", "mkdir", "pwrite", "write", "ftruncate", "fsync", "rename", "replace", "unlink")

    def __init__(self, patch, k, share):
        self.left, self.share = k, share
        for name in self.CALLS:
            patch.setattr(os, name, self.deadly(name, getattr(os, name)))

    def deadly(self, name, call):
        def wrapped(*args, **kwargs):
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return call(*args, **kwargs)
            self.left -= 1
            if self.left > 0:
                return call(*args, **kwargs)
            if self.left == 0 and name == "pwrite":
                call(args[0], args[1][: int(len(args[1]) * self.share)], args[2])
            elif self.left == 0 and self.share == 1 and name != "open":
                call(*args, **kwargs)
            raise Died(name)

        return wrapped


def deaths(monkeypatch, share, action):
    """Let `action` die at each of its system calls in turn; yields after each death, and not when it has survived."""
    for k in itertools.count(1):
        with monkeypatch.context() as patch:
            death = Death(patch, k, share)
            try:
                action()
            except Died:
                pass
            else:
                assert death.left > 0
                return
        yield k


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_writer_that_dies_at_any_system_call_leaves_what_it_acknowledged(tmp_path, monkeypatch, share):
    monkeypatch.setattr(_writer, "FLUSH_ITEMS", 2)
    monkeypatch.setattr(store, "writer_is_alive", lambda stem: False)
    path, acknowledged, versions = tmp_path / "store", [], []

    def build():
        with InfillStore(path, shard_bytes=4000).writer() as writer:
            writer.record_failure({"number": 1})
            for i in (26, 3, 17, 0, 11):
                writer.put(digest(i), payload(i), "raw")
                acknowledged.append(i)
        for version in (1, 2):
            InfillStore(path).write_document("recipe", version)
            versions.append(version)

    died = 0
    for died in deaths(monkeypatch, share, build):  # noqa: B007
        found = contents(path)
        assert found in [expected([26, 3, 17, 0, 11][: len(acknowledged) + more]) for more in (0, 1)]
        opened = InfillStore(path)
        assert opened.failures() in ([], [{"number": 1}])
        known = opened.read_document("recipe") if opened.documents() else 0
        assert known in (len(versions), len(versions) + 1)
        opened.recover()
        assert contents(path) == found
        build()
        opened.refresh()
        assert everything(opened) == contents(path) == expected([26, 3, 17, 0, 11])
        assert opened.read_document("recipe") == 2
        shutil.rmtree(path)
        acknowledged.clear()
        versions.clear()
    assert died > 30


@pytest.mark.parametrize("clock", ["right", "slow"])
@pytest.mark.parametrize("share", [0, 1])
def test_pruning_that_dies_at_any_system_call_loses_no_key_that_was_to_stay(tmp_path, monkeypatch, share, clock):
    monkeypatch.setattr(store, "writer_is_alive", lambda stem: False)
    path, key = tmp_path / "store", digest(100)
    for numbers in ([1, 2, 3], [4, 5], [6, 7]):
        with InfillStore(path).writer() as writer:
            writer.put(key, b"version of %d" % numbers[0], "raw")
            for i in numbers:
                writer.put(digest(i), payload(i), "raw")
    wanted = {**expected([1, 2, 3, 4, 7]), key: b"version of 6"}
    shutil.copytree(path, tmp_path / "copy")
    if clock == "slow":  # what was copied sorts before what it was copied from
        monkeypatch.setattr(_shard.time, "time_ns", lambda: 0)
    died = 0
    for died in deaths(monkeypatch, share, lambda: InfillStore(path).prune(wanted, dry_run=False)):  # noqa: B007
        assert wanted.items() <= contents(path).items()
        InfillStore(path).prune(wanted, dry_run=False)
        assert contents(path) == wanted
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "copy", path)
    assert died > 10
    assert contents(path) == wanted


# --- a system that refuses ---


LIMITED = """
import resource
path = sys.argv[1]
store = InfillStore(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with store.writer() as writer:
    for i in range(10):
        try:
            writer.put(digest(i), payload(i, 30_000), "raw")
        except InfillStoreError as err:
            print(i, err, flush=True)
            break
    writer.put(digest(10), payload(10, 500), "raw")
    store.refresh()
    assert len(store) == 4, len(store)
"""


def test_a_full_disk_is_one_clear_error_and_costs_only_the_record_at_hand(tmp_path):
    with run(LIMITED, tmp_path) as process:
        said = process.stdout.read()
    assert process.returncode == 0
    assert said.startswith(f"3 could not write {tmp_path}/shards/")
    assert "File too large. What was stored before stays readable; check free space" in said
    assert contents(tmp_path) == {**expected(range(3), 30_000), digest(10): payload(10, 500)}
    assert InfillStore(tmp_path).verify().torn_bytes == 0


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_after_a_refused_write_the_writer_goes_on(tmp_path, monkeypatch, code, truncates):
    pwrite = os.pwrite

    def refuse(fd, data, position):
        if len(data) > 4:
            return pwrite(fd, data[: len(data) // 2], position)
        raise OSError(code, os.strerror(code))

    with InfillStore(tmp_path).writer() as writer:
        for i in range(6):
            if i % 2:
                with monkeypatch.context() as patch:
                    patch.setattr(os, "pwrite", refuse)
                    if not truncates:
                        patch.setattr(os, "ftruncate", lambda fd, size: refuse(fd, b"", size))
                    with pytest.raises(InfillStoreError, match=os.strerror(code)):
                        writer.put(digest(i), payload(i, 3000), "raw")
            else:
                writer.put(digest(i), payload(i, 600), "raw")
            assert contents(tmp_path) == expected(range(0, i + 1, 2), 600)
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(InfillStoreError):
            writer.record_failure({"a": 1})
        monkeypatch.undo()
        writer.record_failure({"b": 2})
    assert contents(tmp_path) == expected(range(0, 6, 2), 600)
    assert InfillStore(tmp_path).failures() == [{"b": 2}]
    assert InfillStore(tmp_path).recover() == 0


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, position: pwrite(fd, data[:100], position))
    fill(tmp_path, range(20))
    assert contents(tmp_path) == expected(range(20))


def test_an_interrupted_put_leaves_no_trace(tmp_path, monkeypatch):
    pwrite = os.pwrite

    def interrupted(fd, data, position):
        pwrite(fd, data, position)
        raise KeyboardInterrupt

    with InfillStore(tmp_path).writer() as writer:
        writer.put(digest(1), payload(1), "raw")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.put(digest(2), payload(2), "raw")
        assert contents(tmp_path) == expected([1])
        writer.put(digest(3), payload(3), "raw")
    assert contents(tmp_path) == expected([1, 3])


def test_a_read_that_the_system_refuses_is_an_error_not_a_miss(tmp_path, monkeypatch):
    fill(tmp_path, range(3))
    opened = InfillStore(tmp_path)

    def refuse(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(InfillStoreError, match=r"could not read shard .*: Input/output error\. Check the disk"):
        opened.get(digest(1))


def test_errors_travel_between_processes():
    err = pickle.loads(pickle.dumps(InfillStoreError("what, where, next step")))
    assert isinstance(err, RuntimeError)
    assert str(err) == "what, where, next step"


# --- pruning ---


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sets(st.integers(0, 15)),
    st.integers(1, 5000),
)
def test_pruning_keeps_exactly_what_is_asked(runs, keep, shard_bytes):
    with tempfile.TemporaryDirectory() as path:
        last = {}
        for run_number, numbers in enumerate(runs):
            with InfillStore(path, shard_bytes=shard_bytes).writer() as writer:
                for i in numbers:
                    last[digest(i)] = payload(i) + bytes([run_number])
                    writer.put(digest(i), last[digest(i)], "raw")
        keys = [digest(i) for i in keep]
        opened = InfillStore(path)
        before = files(path)
        planned = opened.prune(iter(keys))
        assert files(path) == before
        assert len(opened) == len(last)
        assert opened.prune(iter(keys), dry_run=False) == planned
        wanted = {key: last[key] for key in keys if key in last}
        assert (planned.kept, planned.dropped) == (len(wanted), len(last) - len(wanted))
        assert everything(opened) == contents(path) == wanted
        report = opened.verify()
        assert (report.items, report.duplicates, report.corrupt, report.torn_bytes) == (len(wanted), 0, [], 0)
        sizes = [sum(len(d) for n, d in found.items() if n.endswith(".tar")) for found in (before, files(path))]
        assert sizes[0] - sizes[1] <= planned.bytes_freed <= sizes[0] - sizes[1] + 1024 * (len(wanted) + 1)
        assert opened.prune(keys, dry_run=False) == (len(wanted), 0, 0)


def test_pruning_leaves_shards_alone_from_which_nothing_goes(tmp_path):
    fill(tmp_path, range(3))
    fill(tmp_path, range(3, 6))
    untouched = shards(tmp_path)[0].read_bytes(), shards(tmp_path)[0].stat().st_ino
    opened = InfillStore(tmp_path)
    opened.prune([digest(i) for i in (0, 1, 2, 4)], dry_run=False)
    assert (shards(tmp_path)[0].read_bytes(), shards(tmp_path)[0].stat().st_ino) == untouched
    assert contents(tmp_path) == expected([0, 1, 2, 4])


@PROC
def test_pruning_removes_a_shard_after_its_copies_are_safe(tmp_path, monkeypatch):
    fill(tmp_path, range(3))
    calls = []
    unlink = os.unlink
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(os, "unlink", lambda path: calls.append("unlink") or unlink(path))
    InfillStore(tmp_path).prune([digest(1)], dry_run=False)
    assert calls[0].endswith(".tar.open")
    assert calls[1:4] == [str(tmp_path / "shards"), "unlink", "unlink"]


def test_pruning_removes_damaged_records(tmp_path):
    fill(tmp_path, range(1, 6))
    damage(tmp_path, 2)
    opened = InfillStore(tmp_path)
    assert opened.prune(expected([1, 2]), dry_run=False)[:2] == (1, 4)
    assert contents(tmp_path) == expected([1])


def test_a_reader_finds_what_another_process_moved_while_pruning(tmp_path):
    fill(tmp_path, range(10))
    early = InfillStore(tmp_path)
    InfillStore(tmp_path).prune(expected([1, 2]), dry_run=False)
    assert [early.get(digest(i)) for i in (1, 2, 3)] == [payload(1), payload(2), None]
    early.refresh()
    assert len(early) == 2


def test_pruning_under_an_active_writer_is_refused(tmp_path):
    opened = InfillStore(tmp_path)
    with opened.writer() as writer:
        writer.put(digest(0), payload(0), "raw")
        with pytest.raises(InfillStoreError, match=r"a writer is active in .*: end it, then prune again"):
            opened.prune([], dry_run=False)
        assert opened.prune([]).dropped == 1
    assert contents(tmp_path) == expected([0])


# --- documents, failures, sizes ---


def test_documents_are_written_replaced_listed_and_read(tmp_path):
    opened = InfillStore(tmp_path)
    assert opened.documents() == []
    opened.write_document("recipe-b", {"z": [1, 2.5, None], "a": "é"})
    opened.write_document("recipe-a", 1)
    opened.write_document("recipe-a", {"version": 2})
    opened.write_document("note", [])
    assert opened.documents() == ["note", "recipe-a", "recipe-b"]
    assert opened.documents("recipe-") == ["recipe-a", "recipe-b"]
    assert InfillStore(tmp_path).read_document("recipe-a") == {"version": 2}
    assert opened.read_document("recipe-b") == {"z": [1, 2.5, None], "a": "é"}
    assert (tmp_path / "documents" / "recipe-a.json").read_text() == '{\n  "version": 2\n}\n'
    with pytest.raises(FileNotFoundError, match="no document 'x'; documents there: note, recipe-a, recipe-b"):
        opened.read_document("x")
    with pytest.raises(ValueError, match="not JSON compliant"):
        opened.write_document("note", float("nan"))


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", ".hidden", "a b", "x" * 201])
def test_documents_can_not_leave_their_folder(tmp_path, name):
    with pytest.raises(ValueError, match="can't name a document"):
        InfillStore(tmp_path).write_document(name, {})
    with pytest.raises(ValueError, match="can't name a document"):
        InfillStore(tmp_path).read_document(name)


def test_failures_are_read_back_in_order_without_the_line_a_killed_writer_left(tmp_path):
    opened = InfillStore(tmp_path)
    assert opened.failures() == []
    for first in (0, 10):
        with opened.writer() as writer:
            writer.record_failure({"number": first, "path": Path("x"), "reason": "line\nbreak é"})
            writer.record_failure({"number": first + 1})
    torn = sorted((tmp_path / "failures").iterdir())[0]
    torn.write_bytes(torn.read_bytes() + b'{"number": 3, "rea')
    found = InfillStore(tmp_path).failures()
    assert [failure["number"] for failure in found] == [0, 1, 10, 11]
    assert found[0] == {"number": 0, "path": "x", "reason": "line\nbreak é"}
    assert len(shards(tmp_path, "")) == 0


def test_size_is_that_of_all_files(tmp_path):
    fill(tmp_path, range(20))
    opened = InfillStore(tmp_path)
    opened.write_document("note", 1)
    assert opened.size_bytes() == sum(len(data) for data in files(tmp_path).values()) > 20 * 512


def test_verifying_shows_a_progress_bar_if_asked(tmp_path, capsys):
    fill(tmp_path, range(20))
    opened = InfillStore(tmp_path)
    assert opened.verify(progress=True) == opened.verify()
    assert "20/20" in capsys.readouterr().err
