"""From a task profile to the confidence source that it names."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence
from infill_aug.confidence.points import PointConfidence
from infill_aug.confidence.sources import BoxConfidence, CentreConfidence, ConfidenceSource, MaskConfidence
from infill_aug.confidence.teachers import load_teacher
from infill_aug.profile import TaskProfile

_LABELS = {"mask": MaskConfidence, "boxes": BoxConfidence, "points": PointConfidence, "centre": CentreConfidence}


def source_from_profile(profile: TaskProfile, device: torch.device | str = "cpu") -> ConfidenceSource:
    """The source that a profile names, with the profile's falloff.

    Args:
        profile: its ``source`` says which; its ``source_options`` are that source's arguments, for the estimator
            ``head`` and those of ``NetworkConfidence``.
        device: where a source that is a network runs.

    Raises:
        FileNotFoundError: the profile's weights are not there.
        ValueError: options that the source does not have, or a profile without the weights that it needs.

    Example:
        >>> source_from_profile(TaskProfile.load("centre_prior"))
        CentreConfidence(falloff=0.3)
    """
    options = {"falloff": profile.falloff, **profile.source_options}
    if profile.source == "estimator":
        options.pop("head", None)  # read by ConfidenceEstimator.from_profile
        _check(profile, options, {"falloff", "edges", "batch_size"}, also={"head"})
        estimator = ConfidenceEstimator.from_profile(profile)
        return EstimatorConfidence(estimator, **{"edges": profile.edges, **options}, device=device)
    if profile.source == "teacher":
        return teacher_from_profile(profile, device, **{"edges": profile.edges, **options})
    kind = _LABELS[profile.source]
    allowed = set(inspect.signature(kind).parameters)
    _check(profile, options, allowed)
    if "edges" in allowed:
        options = {"edges": profile.edges, **options}
    elif profile.edges:
        raise ValueError(f"profile {profile.name!r}: source {profile.source!r} knows no edges, got {profile.edges}")
    return kind(**options)


def teacher_from_profile(profile: TaskProfile, device: torch.device | str = "cpu", **grading: Any) -> ConfidenceSource:
    """The teacher that a profile names, with the profile's class weights; ungraded, as a student should see it.

    Args:
        profile: with a ``teacher``.
        device: where it runs.
        grading: further arguments of the teacher.

    Raises:
        ValueError: the profile names no teacher, or class weights for classes that it does not have.
    """
    if profile.teacher is None:
        raise ValueError(f"profile {profile.name!r} names no teacher; give it one, or labels to learn from")
    options = {**profile.teacher, "device": device, **grading}
    return load_teacher(options.pop("name"), class_weights=profile.class_weights or None, **options)


def _check(profile: TaskProfile, options: dict[str, Any], allowed: set[str], also: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(
            f"profile {profile.name!r}: source {profile.source!r} has no options {unknown}; "
            f"it has {sorted(allowed | also)}"
        )
