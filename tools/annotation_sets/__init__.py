"""Annotation files of published data sets, as records in the DRAKE/HFLB form; see `make_annotation_sets.py`."""
