"""Classification: splits and few-shot draws, prompted CLIP, the trainer that methods derive from. Import the submodules."""
