"""Times and yardsticks; each file says how it is run."""
