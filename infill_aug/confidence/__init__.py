"""Where confidence maps come from."""

from infill_aug.confidence.estimator import ConfidenceEstimator as ConfidenceEstimator
from infill_aug.confidence.estimator import EstimatorConfidence as EstimatorConfidence
from infill_aug.confidence.from_profile import source_from_profile as source_from_profile
from infill_aug.confidence.from_profile import teacher_from_profile as teacher_from_profile
from infill_aug.confidence.network import NetworkConfidence as NetworkConfidence
from infill_aug.confidence.points import PointConfidence as PointConfidence
from infill_aug.confidence.sources import BoxConfidence as BoxConfidence
from infill_aug.confidence.sources import CallableConfidence as CallableConfidence
from infill_aug.confidence.sources import CentreConfidence as CentreConfidence
from infill_aug.confidence.sources import ConfidenceSource as ConfidenceSource
from infill_aug.confidence.sources import MaskConfidence as MaskConfidence
from infill_aug.confidence.sources import protect_labelled as protect_labelled
