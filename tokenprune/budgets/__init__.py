"""Budgets: how many visual tokens survive?"""
