"""Statistics: means with 95 % intervals, and the test that lets candidates leave a race."""
