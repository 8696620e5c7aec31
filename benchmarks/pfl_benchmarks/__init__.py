"""Part of pfl-platform; every folder here is a plugin."""
