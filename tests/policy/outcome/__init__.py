"""What comes out of runs: measures, their sums, tables, and bars that they are held against."""
