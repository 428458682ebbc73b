"""Goes on with what the process before left, and re-executes the program in place.

It reads what store/ holds; front_end/ serves what it finds.
"""
