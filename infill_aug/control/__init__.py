"""What moves the threshold: control laws, which are pure, and the object that applies them to a ``ThresholdState``."""
