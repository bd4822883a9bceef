"""Random change of the infill only, so that a few stored fills look like many."""

from infill_aug.variation.variation import Variation as Variation
