"""FLAN by tasks: Potara's eight, and the two sets of FedDPA, read from FedDPA's form. See README.md."""
