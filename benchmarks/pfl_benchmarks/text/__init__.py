"""What text benchmarks share: files of records, and draws of train, validation and test samples from them."""
