"""From an output tree to tables and plots."""
