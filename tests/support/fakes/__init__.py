"""Stand-ins for other programs: front ends, back ends, daemons, a package archive."""
