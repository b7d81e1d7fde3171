"""Budgets state how many visual tokens survive."""
