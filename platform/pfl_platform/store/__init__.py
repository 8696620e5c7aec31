"""What lies on disk: tensors by content address, outcomes of tasks, and the run folder that holds everything."""
