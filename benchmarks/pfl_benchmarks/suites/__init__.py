"""Published federations in the folder form: DRAKE, HFLB, Fed-Aya, Fed-Scope and Fed-LLM-Large. See README.md.

Parts: `cards/` (who has which tasks and models, as data), `sheet` (a card as clients), `options`, `loading`, and for
files that are not in the form `scope`, `exams` (Fed-Scope's sources and tests) and `large` (Fed-LLM-Large's).
"""
