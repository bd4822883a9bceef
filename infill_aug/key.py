from infill_aug.cache.key import *
from infill_aug.cache.key import digest, image_digest, seed_from
