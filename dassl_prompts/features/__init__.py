"""Features of frozen towers, kept so that they are computed once. Import the submodules."""
