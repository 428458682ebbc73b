"""Continues what the previous process left, and re-executes the program in place.

Reads what store/ holds; front_end/ serves what is found.
"""
