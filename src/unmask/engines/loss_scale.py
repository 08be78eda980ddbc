"""Dynamic loss scaling for fp16: the constants both engines share (Micikevicius et al. 2018)."""

INITIAL_LOSS_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
"""Good steps in a row after which the scale is doubled; a non-finite gradient halves it at once."""
MIN_LOSS_SCALE = 1.0
