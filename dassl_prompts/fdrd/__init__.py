"""FDRD files (one caption per image, with negatives): reading, checking, building.

``python -m dassl_prompts.fdrd check FILE...`` reports what is wrong with such files, ``... build`` makes one.
"""
