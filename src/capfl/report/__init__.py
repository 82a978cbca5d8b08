"""What a run has to say: its summary, its tables, its progress."""
