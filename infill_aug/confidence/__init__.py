"""Where confidence maps come from."""

from infill_aug.confidence.sources import BoxConfidence as BoxConfidence
from infill_aug.confidence.sources import CallableConfidence as CallableConfidence
from infill_aug.confidence.sources import CentreConfidence as CentreConfidence
from infill_aug.confidence.sources import ConfidenceSource as ConfidenceSource
from infill_aug.confidence.sources import MaskConfidence as MaskConfidence
from infill_aug.confidence.sources import protect_labelled as protect_labelled
from infill_aug.confidence.sources import source_from_profile as source_from_profile
