"""What a user sees of a run: progress while it lasts, tables when it has ended, scalars and events on disk."""
