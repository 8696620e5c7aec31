"""The model zoo: backbone families, one card per backbone, and the weights of the tiny ones.

Importing this package, its plugin or a card imports neither torch nor transformers.
"""
