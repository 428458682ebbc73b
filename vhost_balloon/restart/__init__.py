"""Continues what the previous process left, and re-executes the program in place.

Reads what store/ holds, and rebuilds session, memory and rings from it; front_end/ serves them.
"""
