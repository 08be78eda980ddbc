"""What a run tells: its log, its progress on the terminal, its figures."""
