"""Pure tensor functions: what the classes of this package are made of."""

from infill_aug.functional.composite import composite as composite
from infill_aug.functional.grading import centre_prior as centre_prior
from infill_aug.functional.grading import euclidean_distance as euclidean_distance
from infill_aug.functional.grading import grade as grade
from infill_aug.functional.masks import clean_mask as clean_mask
from infill_aug.functional.masks import dilate as dilate
from infill_aug.functional.masks import erode as erode
from infill_aug.functional.masks import feather_mask as feather_mask
from infill_aug.functional.masks import level_masks as level_masks
from infill_aug.functional.masks import masked_share as masked_share
from infill_aug.functional.masks import threshold_mask as threshold_mask
