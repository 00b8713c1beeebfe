"""Composed image retrieval: triplets, queries, metrics, submission files, search. Import the submodules."""
