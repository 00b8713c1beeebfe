"""Exact ranking by score, and pictures of ranked answers. Import the submodules."""
