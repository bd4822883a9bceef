"""Generating infills once: plan, skip what is there, generate, store."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from infill_aug.cache.codec import CODECS, encode_infill, encode_map
from infill_aug.cache.fill import Filled, Filler, without_options
from infill_aug.cache.plan import PlannedSample, Planner, Scorer, pool
from infill_aug.cache.recipe import Recipe, entry_key, infill_key, map_key
from infill_aug.cache.report import BuildEstimate as BuildEstimate
from infill_aug.cache.report import BuildReport as BuildReport
from infill_aug.cache.report import summary
from infill_aug.cache.store import InfillStore, InfillStoreError, InfillStoreWriter
from infill_aug.confidence.from_profile import source_from_profile
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.descriptor import TaskDescriptor
from infill_aug.functional.masks import check_levels
from infill_aug.infill import choose_backend, load_backend
from infill_aug.infill.backend import InfillBackend, SampleContext
from infill_aug.infill.gate import QualityGate, kind_of
from infill_aug.key import digest, image_digest, seed_from
from infill_aug.profile import TaskProfile
from infill_aug.samples import spread

RESUME_MODES = ("never", "if_possible", "always")
# Samples that a dry run generates to measure time and size.
_PROBE = 8
# Threads that encode a batch while the next one is generated.
_ENCODERS = min(8, os.cpu_count() or 1)
# Samples that a report names for each reason of the gate.
_EXAMPLES = 5


@dataclass
class _Job:
    """One infill to generate."""

    key: str
    image: Tensor
    mask: Tensor
    context: SampleContext
    sample: _Open
    places: list[tuple[int, int]]  # (level, variant) that this infill serves
    spare: str = ""  # key of the fallback's infill, where there is a fallback


@dataclass
class _Open:
    """A sample whose entry is written when its last infill is there."""

    index: int
    key: str
    entry: dict[str, Any]
    waiting: int
    request: str = ""  # digest of the entry as it was asked for


def build_cache(
    dataset: Any,
    store: InfillStore | str | PathLike[str],
    *,
    profile: TaskProfile | str | Mapping[str, Any] = "labelled_masks",
    source: ConfidenceSource | None = None,
    backend: InfillBackend | str | None = None,
    descriptor: TaskDescriptor | str | Mapping[str, Any] | None = None,
    levels: Sequence[float] | None = None,
    variants: int = 1,
    protect: str | None = None,
    resume: str = "if_possible",
    codec: str = "webp",
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    image_key: str | int | None = None,
    gate: QualityGate | bool | None = None,
    retries: int = 2,
    fallback: InfillBackend | str | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> BuildReport | BuildEstimate:
    """Generate and store the infills of a dataset; run it again to go on where it stopped, or to check.

    Keys follow from the content of each image, mask and option: a rerun generates only what is missing, deletes
    nothing, and makes the same bytes whatever the batch size, order or number of workers. A sample that fails is
    recorded and left out; the next run tries it again. So it does with what a fallback filled because the backend was
    unavailable or failed; what the gate turned down for good stays the fallback's.

    Args:
        dataset: map-style, with images as the training will read them, before any transform: tuples or mappings with
            PIL pictures, arrays or tensors.
        store: an ``InfillStore`` or the folder of one.
        profile: task profile, its name, file or fields.
        source: confidence source; by default the one that the profile names.
        backend: infill backend or its name; by default the descriptor's, else ``"push_pull"``.
        descriptor: task descriptor, JSON text, path or mapping.
        levels: rising thresholds, one infill each; by default a half, three quarters and all of the profile's upper
            bound.
        variants: different fills of each mask, 1 or more; backends without randomness make one.
        protect: ``"boxes"`` or ``"masks"``: labelled objects that are never regenerated.
        resume: ``"if_possible"``; ``"never"`` refuses a store that already holds this recipe, ``"always"`` refuses one
            that does not.
        codec: ``"webp"`` (lossless), ``"jpeg"`` or ``"raw"``.
        batch_size: infills generated at once.
        device: device of the backend's tensors.
        num_workers: processes that read images and compute maps.
        image_key: key or position of the image in a sample.
        gate: turns fills down that are not fit to train on; they are tried again with the next seed. ``True`` makes one
            that suits the backend and looks for the object with the source, where that is a network.
        retries: further tries of a fill that the gate turned down, 0 or more; backends without randomness get none.
        fallback: backend or its name for what the backend or the gate gave up; such infills are marked in the image's
            entry, and not judged. Without one they are failures.
        dry_run: measure a few samples, store nothing, and return an estimate. A paid service is not called.
        progress: show a progress bar.

    Returns:
        A ``BuildReport``; a ``BuildEstimate`` for a dry run.

    Raises:
        ValueError: an argument out of range; an empty dataset; ``resume`` and the store disagree.
        InfillStoreError: the disk is full or cannot be written. What was stored stays stored.
        BackendUnavailableError: the backend can fill nothing, and there is no fallback. What was stored stays stored.

    Example:
        >>> import tempfile, torch
        >>> pictures = [(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), 0) for _ in range(3)]
        >>> report = build_cache(pictures, tempfile.mkdtemp(), profile="centre_prior", progress=False)
        >>> report.generated, len(report.failed)
        (9, 0)
    """
    profile = TaskProfile.load(profile)
    descriptor = _descriptor(descriptor)
    backend = choose_backend(backend, descriptor)
    if isinstance(fallback, str):
        fallback = load_backend(fallback)
    if isinstance(retries, bool) or retries < 0:
        raise ValueError(f"retries must be 0 or more, got {retries!r}")
    source = source or source_from_profile(profile, device)
    _warn_of_quality(source)
    if isinstance(gate, bool):
        gate = QualityGate.of_build(backend, source) if gate else None
    levels = check_levels(levels if levels is not None else [s * profile.bounds[1] for s in (0.5, 0.75, 1.0)])
    _check(dataset, variants, resume, codec, batch_size)
    store = store if isinstance(store, InfillStore) else InfillStore(store)
    plan = Planner(dataset, source, profile, levels, protect, image_key)
    scorer = Scorer(plan, source, store)
    for each in (backend, fallback):
        if each is not None and each.pool_size:
            each.prepare(pool(plan, scorer, each.pool_size))
    config = backend.model_config(descriptor)
    checks: dict[str, Any] = {}
    if gate is not None:
        checks |= {"gate": gate.identity(), "retries": retries}
    if fallback is not None:
        spare = fallback.model_config(without_options(descriptor))
        checks["fallback"] = {"backend": spare.backend, "fingerprint": spare.fingerprint()}
    recipe = Recipe(
        source=source.config(),
        levels=levels,
        mode=profile.mode,
        protect_above=float(profile.protect_above),
        clean=profile.clean,
        protect=protect,
        descriptor=descriptor.to_dict(),
        backend=backend.name,
        fingerprint_of_backend=config.fingerprint(),
        variants=variants if config.stochastic else 1,
        checks=checks,
    )
    if dry_run:
        return _estimate(plan, scorer, store, recipe, Filler(backend, descriptor, torch.device(device)), codec)
    _check_resume(store, recipe, resume)
    # Without randomness the next try gives the same fill.
    tries = 1 + (retries if gate is not None and config.stochastic else 0)
    filler = Filler(backend, descriptor, torch.device(device), gate, tries, fallback)
    run = _Run(store, recipe, filler, codec, batch_size)
    run.maps = scorer.written
    started = time.perf_counter()
    loader = DataLoader(plan, batch_size=None, num_workers=num_workers, shuffle=False)
    store.write_document(f"recipe-{recipe.fingerprint()}", recipe.to_dict())
    store.write_document("latest", {"recipe": recipe.fingerprint()})
    with (
        store.writer() as writer,
        ThreadPoolExecutor(_ENCODERS) as run.encoders,
        tqdm(total=len(plan), unit="image", disable=not progress, desc="infills") as bar,
    ):
        try:
            for sample in scorer(loader, writer):
                run.add(sample, writer)
                bar.update()
                bar.set_postfix(generated=run.generated, failed=len(run.failed), refresh=False)
            run.finish(writer)
        except InfillStoreError:  # nothing more can be written
            raise
        except BaseException:
            run.write(writer)  # what has been made may have cost money
            raise
    store.refresh()
    return BuildReport(
        recipe=recipe.fingerprint(),
        samples=len(plan),
        generated=run.generated,
        present=run.present,
        failed=run.failed,
        seconds=time.perf_counter() - started,
        bytes=store.size_bytes(),
        rejected=dict(run.rejected),
        examples=run.examples,
        fell_back=run.fell_back,
    )


class _Run:
    """State of one build: what waits for a full batch, and the counts."""

    def __init__(self, store: InfillStore, recipe: Recipe, filler: Filler, codec: str, batch_size: int) -> None:
        self.store, self.recipe, self.filler, self.codec, self.batch_size = store, recipe, filler, codec, batch_size
        self.fell_back = 0
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, list[int]] = {}
        self.encoders: ThreadPoolExecutor | None = None
        self._encoding: list[tuple[_Job, str, Future[tuple[bytes, str]] | None]] = []
        self._spares: set[str] = set()  # keys of the fallback's infills that this run has made
        self.fingerprint = recipe.fingerprint()
        self._spare: tuple[str, bool, dict[str, Any]] | None = None  # what the keys of the fallback's infills rest on
        if filler.fallback is not None:
            plain = without_options(filler.descriptor)
            config = filler.fallback.model_config(plain)
            self._spare = config.fingerprint(), config.stochastic, plain.to_dict()
        self.generated = self.present = 0
        self.failed: list[dict[str, Any]] = []
        self._waiting: dict[tuple[int, ...], list[_Job]] = defaultdict(list)
        self.maps: set[str] = set()  # written by this run: the store's index learns of them at the next refresh
        self._seen: dict[str, _Open] = {}  # by entry key: a picture that occurs twice is filled once

    def jobs(self, sample: PlannedSample) -> tuple[_Open, list[_Job]]:
        """The entry of a sample and every infill that it lists."""
        entry: dict[str, Any] = {"recipe": self.fingerprint, "map": map_key(sample.confidence), "infills": []}
        if sample.score:
            entry["score"] = sample.score  # so that the note is kept as long as the entry
        opened = _Open(sample.index, entry_key(self.fingerprint, sample.digest), entry, 0)
        jobs: dict[str, _Job] = {}
        for level, mask in enumerate(sample.masks):
            mask_digest = image_digest(mask.to(torch.uint8))
            keys: list[str | None] = []
            for variant in range(self.recipe.variants):
                key = infill_key(
                    sample.digest, mask_digest, self.recipe.fingerprint_of_backend, self.recipe.descriptor, variant,
                    sample.label, self.recipe.checks.get("gate"),
                )  # fmt: skip
                seed = seed_from(self.filler.descriptor.seed, sample.digest, mask_digest, variant)
                context = SampleContext(sample.digest, seed, sample.label)
                # An empty mask has nothing to generate; its place stays empty and the image itself is read there.
                if mask.any():
                    job = jobs.setdefault(key, _Job(key, sample.image, mask[None], context, opened, []))
                    job.spare = self._spare_key(sample, mask_digest, variant)
                    job.places.append((level, variant))
                    keys.append(key)
                else:
                    keys.append("")
            entry["infills"].append(keys)
        opened.request = digest(entry)
        return opened, list(jobs.values())

    def _spare_key(self, sample: PlannedSample, mask_digest: str, variant: int) -> str:
        """Key of what the fallback would make: the one that it has in a build of its own."""
        if self._spare is None:
            return ""
        fingerprint, stochastic, descriptor = self._spare
        return infill_key(
            sample.digest, mask_digest, fingerprint, descriptor, variant if stochastic else 0, sample.label
        )

    def add(self, sample: PlannedSample, writer: InfillStoreWriter) -> None:
        """Queue what a sample lacks, and generate where a batch is full."""
        if sample.error:
            self._fail(writer, sample.index, sample.error)
            return
        opened, jobs = self.jobs(sample)
        first = self._seen.setdefault(opened.key, opened)
        if first is not opened:
            if first.request != opened.request:
                warnings.warn(
                    f"sample {opened.index} is the same picture as sample {first.index}, with another mask or label; "
                    "images are found by their pixels, so the infills of the first serve both",
                    stacklevel=3,
                )
            return
        before = self._notes(opened)
        missing = [job for job in jobs if not self._is_there(job, before)]
        self.present += len(jobs) - len(missing)
        if opened.entry["map"] not in self.store and opened.entry["map"] not in self.maps:
            writer.put(opened.entry["map"], *encode_map(sample.confidence))
            self.maps.add(opened.entry["map"])
        opened.waiting = len(missing)
        if not missing:
            self._close(opened, writer)
        queue = self._waiting[tuple(sample.image.shape)]
        queue += missing
        while len(queue) >= self.batch_size:
            self._generate([queue.pop(0) for _ in range(self.batch_size)], writer)

    def finish(self, writer: InfillStoreWriter) -> None:
        """Generate what is left."""
        for queue in self._waiting.values():
            while queue:
                batch, queue[:] = queue[: self.batch_size], queue[self.batch_size :]
                self._generate(batch, writer)
        self.write(writer)
        if self.rejected or self.fell_back:
            checked = summary(self.rejected, self.examples, self.fell_back)
            writer.record_failure(
                {"recipe": self.fingerprint, "reason": checked, "rejected": self.rejected, "fell_back": self.fell_back}
            )

    def _turn_down(self, job: _Job, verdict: str) -> None:
        kind = kind_of(verdict) or verdict
        self.rejected[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if job.sample.index not in examples and len(examples) < _EXAMPLES:
            examples.append(job.sample.index)
        job.sample.entry.setdefault("rejected", {}).setdefault(job.key, []).append(verdict)

    def fill(self, jobs: Sequence[_Job]) -> Filled:
        """The fills of some jobs of one size."""
        return self.filler([job.image for job in jobs], [job.mask for job in jobs], [job.context for job in jobs])

    def _generate(self, jobs: Sequence[_Job], writer: InfillStoreWriter) -> None:
        fills, reasons, fell_back, rejected = self.fill(jobs)
        for i, verdict in rejected:
            self._turn_down(jobs[i], verdict)
        # The batch before was encoded meanwhile; it is written in its order, whatever thread was first.
        self.write(writer)
        assert self.encoders is not None
        for i, job in enumerate(jobs):
            key: str | None = job.key
            is_there = False
            if i in reasons:
                self._fail(writer, job.sample.index, reasons[i], key=job.key)
                key = None
            elif i in fell_back:
                self._fall_back(job, fell_back[i])
                key = job.spare
                is_there = key in self._spares or key in self.store
                self._spares.add(key)
            encoded = None
            if key is not None and not is_there:
                encoded = self.encoders.submit(encode_infill, fills[i], job.mask, job.image, self.codec)
            self._place(job, key)
            self._encoding.append((job, key or "", encoded))

    def write(self, writer: InfillStoreWriter) -> None:
        """Store what is encoded, and the entries that are complete with it."""
        while self._encoding:
            job, key, encoded = self._encoding.pop(0)
            if encoded is not None:
                writer.put(key, *encoded.result())
                self.generated += 1
            job.sample.waiting -= 1
            if job.sample.waiting == 0:
                self._close(job.sample, writer)

    def _place(self, job: _Job, key: str | None) -> None:
        for level, variant in job.places:
            job.sample.entry["infills"][level][variant] = key

    def _fall_back(self, job: _Job, reason: str) -> None:
        assert self.filler.fallback is not None
        job.sample.entry.setdefault("fallback", {})[job.key] = f"{self.filler.fallback.name}: {reason}"
        self.fell_back += 1

    def _notes(self, opened: _Open) -> dict[str, dict[str, Any]]:
        """What an earlier run noted of a sample: why fills were rejected, and what the fallback filled."""
        known = self.store.get(opened.key) if self.recipe.checks else None
        entry = json.loads(known) if known is not None else {}
        return {name: entry.get(name, {}) for name in ("rejected", "fallback")}

    def _is_there(self, job: _Job, before: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the store has the infill, or what the fallback made after the gate had turned down every try."""
        note = before["fallback"].get(job.key, "")
        given_up = note.partition(": ")[2].startswith("rejected") and job.spare in self.store
        if job.key not in self.store and not given_up:
            return False
        if job.key in before["rejected"]:
            job.sample.entry.setdefault("rejected", {})[job.key] = before["rejected"][job.key]
        if job.key not in self.store:
            job.sample.entry.setdefault("fallback", {})[job.key] = note
            self._place(job, job.spare)
        return True

    def _close(self, opened: _Open, writer: InfillStoreWriter) -> None:
        for name in ("rejected", "fallback"):  # in one order, whatever came first
            if name in opened.entry:
                opened.entry[name] = dict(sorted(opened.entry.pop(name).items()))
        payload = json.dumps(opened.entry, separators=(",", ":")).encode()
        if self.store.get(opened.key) != payload:
            writer.put(opened.key, payload, "json")
        opened.entry = {}  # written: what is kept of every picture until the end is small

    def _fail(self, writer: InfillStoreWriter, index: int, reason: str, key: str = "") -> None:
        record = {"sample": index, "reason": reason, "recipe": self.fingerprint, "key": key}
        self.failed.append(record)
        writer.record_failure(record)


def _descriptor(descriptor: TaskDescriptor | str | Mapping[str, Any] | None) -> TaskDescriptor:
    if descriptor is None:
        return TaskDescriptor(task="classification", object="object")
    return descriptor if isinstance(descriptor, TaskDescriptor) else TaskDescriptor.from_json(descriptor)


def _check(dataset: Any, variants: int, resume: str, codec: str, batch_size: int) -> None:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"dataset must be map-style (len and []), got {type(dataset).__name__}; list() an iterable one")
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; check its root and split")
    if variants < 1 or batch_size < 1:
        raise ValueError(f"variants and batch_size must be 1 or more, got {variants} and {batch_size}")
    if resume not in RESUME_MODES:
        raise ValueError(f"resume must be one of {RESUME_MODES}, got {resume!r}")
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {CODECS}, got {codec!r}")


def _warn_of_quality(source: ConfidenceSource) -> None:
    quality = getattr(source, "quality", {})
    if quality and not quality.get("passes", True):
        warnings.warn(f"{quality['verdict']} The infills will show it; see infill-aug profiles evaluate", stacklevel=3)


def _check_resume(store: InfillStore, recipe: Recipe, resume: str) -> None:
    known = f"recipe-{recipe.fingerprint()}" in store.documents("recipe-")
    if resume == "never" and known:
        raise ValueError(
            f"resume='never', but {store.path} already holds this recipe; use another folder or if_possible"
        )
    if resume == "always" and not known:
        raise ValueError(
            f"resume='always', but {store.path} holds no build of this recipe: something in dataset labels, profile, "
            f"backend, levels or descriptor differs. It holds {store.documents('recipe-')}"
        )


def _estimate(
    plan: Planner, scorer: Scorer, store: InfillStore, recipe: Recipe, filler: Filler, codec: str
) -> BuildEstimate:
    run = _Run(store, recipe, filler, codec, _PROBE)
    indices = spread(len(plan), _PROBE)
    infills, size, dollars, paid = 0, 0, 0.0, False
    started = time.perf_counter()
    for sample in scorer(plan[index] for index in indices):
        if sample.error:
            continue
        _, jobs = run.jobs(sample)
        each = filler.backend.price(filler.descriptor, *sample.image.shape[-2:])
        if each:  # an estimate must not cost anything: the picture itself stands for its fill
            dollars += each * sum(job.key not in store for job in jobs)
            paid = True
            fills = [job.image for job in jobs]
        else:
            fills = list(run.fill(jobs).fills) if jobs else []
        size += len(encode_map(sample.confidence)[0])
        for job, fill in zip(jobs, fills, strict=False):
            size += len(encode_infill(fill, job.mask, job.image, codec)[0]) + 1024  # header and padding
        infills += len(jobs)
    seconds = time.perf_counter() - started
    share = len(plan) / len(indices)
    return BuildEstimate(
        samples=len(plan),
        infills=round(infills * share),
        seconds=math.nan if paid else seconds * share,
        bytes=round(size * share),
        free=shutil.disk_usage(store.path).free,
        probed=len(indices),
        dollars=dollars * share,
    )
