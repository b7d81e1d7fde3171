"""Pruners: which tokens survive, and what happens to the others?"""
