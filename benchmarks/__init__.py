"""How fast it is, as ratios to a baseline measured in the same run: `make bench`. One file per part."""
