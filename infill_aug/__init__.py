"""Training-time augmentation that masks what does not matter to the task and refills it.

This file is the table of contents. Everything is loaded on first use: ``import infill_aug`` alone loads no library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from infill_aug.batch import InfillAugment as InfillAugment
    from infill_aug.cache.build import build_cache as build_cache
    from infill_aug.cache.reader import InfillMissError as InfillMissError
    from infill_aug.cache.report import BuildEstimate as BuildEstimate
    from infill_aug.cache.report import BuildReport as BuildReport
    from infill_aug.cache.store import InfillStore as InfillStore
    from infill_aug.cache.store import InfillStoreError as InfillStoreError
    from infill_aug.confidence.estimator import ConfidenceEstimator as ConfidenceEstimator
    from infill_aug.confidence.estimator import EstimatorConfidence as EstimatorConfidence
    from infill_aug.confidence.evaluation import evaluate_confidence as evaluate_confidence
    from infill_aug.confidence.from_profile import source_from_profile as source_from_profile
    from infill_aug.confidence.network import NetworkConfidence as NetworkConfidence
    from infill_aug.confidence.points import PointConfidence as PointConfidence
    from infill_aug.confidence.quality_report import QualityReport as QualityReport
    from infill_aug.confidence.sources import BoxConfidence as BoxConfidence
    from infill_aug.confidence.sources import CallableConfidence as CallableConfidence
    from infill_aug.confidence.sources import CentreConfidence as CentreConfidence
    from infill_aug.confidence.sources import MaskConfidence as MaskConfidence
    from infill_aug.confidence.teachers import list_teachers as list_teachers
    from infill_aug.confidence.teachers import load_teacher as load_teacher
    from infill_aug.control.controller import ThresholdController as ThresholdController
    from infill_aug.control.per_class import PerClassLaw as PerClassLaw
    from infill_aug.control.proportional import ProportionalLaw as ProportionalLaw
    from infill_aug.control.schedule import ConstantLaw as ConstantLaw
    from infill_aug.control.schedule import ScheduleLaw as ScheduleLaw
    from infill_aug.control.sign import SignLaw as SignLaw
    from infill_aug.datasets import InfillDataset as InfillDataset
    from infill_aug.descriptor import TaskDescriptor as TaskDescriptor
    from infill_aug.dynamic_mask import DynamicMask as DynamicMask
    from infill_aug.dynamic_mask import generate_dynamic_mask as generate_dynamic_mask
    from infill_aug.huggingface.callback import ThresholdCallback as ThresholdCallback
    from infill_aug.huggingface.collator import InfillCollator as InfillCollator
    from infill_aug.infill import list_backends as list_backends
    from infill_aug.infill import load_backend as load_backend
    from infill_aug.infill.backend import BackendUnavailableError as BackendUnavailableError
    from infill_aug.infill.backend import InfillBackend as InfillBackend
    from infill_aug.infill.backend import InfillError as InfillError
    from infill_aug.infill.backend import ModelConfig as ModelConfig
    from infill_aug.infill.backend import PartialInfillError as PartialInfillError
    from infill_aug.infill.gate import QualityGate as QualityGate
    from infill_aug.infill.outpaint import outpaint as outpaint
    from infill_aug.keep_tokens import KeepTokens as KeepTokens
    from infill_aug.lit.callback import AdaptiveThreshold as AdaptiveThreshold
    from infill_aug.lit.datamodule import InfillDataModule as InfillDataModule
    from infill_aug.lit.image_logger import ImageLogger as ImageLogger
    from infill_aug.lit.learn import LearnedProfile as LearnedProfile
    from infill_aug.lit.learn import learn_profile as learn_profile
    from infill_aug.prefetch import Prefetcher as Prefetcher
    from infill_aug.probe import ControlProbe as ControlProbe
    from infill_aug.process import ProcessedImage as ProcessedImage
    from infill_aug.process import process_image as process_image
    from infill_aug.profile import TaskProfile as TaskProfile
    from infill_aug.profile import list_profiles as list_profiles
    from infill_aug.smart_mask.result import SmartMaskResult as SmartMaskResult
    from infill_aug.smart_mask.smart_mask import SmartMask as SmartMask
    from infill_aug.threshold import ThresholdState as ThresholdState
    from infill_aug.transforms import InfillTransform as InfillTransform
    from infill_aug.types import ConfidenceMap as ConfidenceMap
    from infill_aug.variation import Variation as Variation

_CONTENTS = {
    "AdaptiveThreshold": "lit.callback",
    "BackendUnavailableError": "infill.backend",
    "BoxConfidence": "confidence.sources",
    "BuildEstimate": "cache.report",
    "BuildReport": "cache.report",
    "CallableConfidence": "confidence.sources",
    "CentreConfidence": "confidence.sources",
    "ConfidenceEstimator": "confidence.estimator",
    "ConfidenceMap": "types",
    "ConstantLaw": "control.schedule",
    "ControlProbe": "probe",
    "DynamicMask": "dynamic_mask",
    "EstimatorConfidence": "confidence.estimator",
    "ImageLogger": "lit.image_logger",
    "InfillAugment": "batch",
    "InfillBackend": "infill.backend",
    "InfillCollator": "huggingface.collator",
    "InfillDataModule": "lit.datamodule",
    "InfillDataset": "datasets",
    "InfillError": "infill.backend",
    "InfillMissError": "cache.reader",
    "InfillStore": "cache.store",
    "InfillStoreError": "cache.store",
    "InfillTransform": "transforms",
    "KeepTokens": "keep_tokens",
    "LearnedProfile": "lit.learn",
    "MaskConfidence": "confidence.sources",
    "ModelConfig": "infill.backend",
    "NetworkConfidence": "confidence.network",
    "PartialInfillError": "infill.backend",
    "PerClassLaw": "control.per_class",
    "PointConfidence": "confidence.points",
    "Prefetcher": "prefetch",
    "ProcessedImage": "process",
    "ProportionalLaw": "control.proportional",
    "QualityGate": "infill.gate",
    "QualityReport": "confidence.quality_report",
    "ScheduleLaw": "control.schedule",
    "SignLaw": "control.sign",
    "SmartMask": "smart_mask.smart_mask",
    "SmartMaskResult": "smart_mask.result",
    "TaskDescriptor": "descriptor",
    "TaskProfile": "profile",
    "ThresholdCallback": "huggingface.callback",
    "ThresholdController": "control.controller",
    "ThresholdState": "threshold",
    "Variation": "variation",
    "build_cache": "cache.build",
    "evaluate_confidence": "confidence.evaluation",
    "generate_dynamic_mask": "dynamic_mask",
    "learn_profile": "lit.learn",
    "list_backends": "infill",
    "list_profiles": "profile",
    "list_teachers": "confidence.teachers",
    "load_backend": "infill",
    "load_teacher": "confidence.teachers",
    "outpaint": "infill.outpaint",
    "process_image": "process",
    "source_from_profile": "confidence.from_profile",
}

__all__ = ["__version__", *sorted(_CONTENTS)]


def __getattr__(name: str) -> Any:
    if name not in _CONTENTS:
        raise AttributeError(f"module 'infill_aug' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"infill_aug.{_CONTENTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
