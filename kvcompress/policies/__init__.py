"""Policies: scorers, allocators, decode rules, and what is made of them."""
