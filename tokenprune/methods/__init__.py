"""Named methods as data: every ``*.yaml`` beside this file.

The entry-point group ``tokenprune.methods`` names this package; see :mod:`tokenprune.methods.named`.
"""
