"""Named methods as data: every ``*.yaml`` beside this file. Registered in the entry-point group ``tokenprune.methods``."""
