"""Lightning: the callback, data module and image logger. Importing one of its modules imports ``lightning``."""
