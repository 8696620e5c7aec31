"""Super-NaturalInstructions: one text task per client, read from the official task files. See README.md."""
