"""One file of conversations as a federation of one client. See README.md."""
