"""Image-text retrieval: captioned images, their trainer, recall in both directions. Import the submodules."""
