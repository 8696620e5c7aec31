"""A user's own federation, read from a folder in the DRAKE/HFLB on-disk form. See README.md for the form.

Parts: `plugin` (hook and options), `scenario` (who has which tasks), `records` (record files to samples), `choices`
(options of a multi-choice question), `pictures` (files behind the samples), `splits` (validation, overlap), `public`
(public sets), `loading`, which puts them together, and `benchmark`, which comes out.
"""
