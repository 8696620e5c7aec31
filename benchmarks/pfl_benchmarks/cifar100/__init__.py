"""CIFAR-100 split over clients by a Dirichlet law, read from the official binary files. See README.md."""
