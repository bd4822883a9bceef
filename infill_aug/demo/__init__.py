"""The main job of this package on data that everybody has: ``infill-aug demo``."""
