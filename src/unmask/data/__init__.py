"""From files to batches."""

import logging

# Importing Grain logs a warning for everyone who does not use JAX.
logging.getLogger("absl").addFilter(lambda record: "jax profiler" not in record.getMessage())
