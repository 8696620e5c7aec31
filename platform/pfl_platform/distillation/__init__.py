"""Learning from what other models predict, also when they cut text into other tokens.

A teacher's predictions are measured (`predictions`), its positions are matched with the student's by characters
(`spans`), its tokens by the text that they stand for (`vocabularies`), several teachers become one target
(`targets`), and the student is trained towards it (`losses`) in a task of the one training loop (`public`).
"""
