"""The networks as single-device mathematics, one file a framework, and what their parameters start as."""
