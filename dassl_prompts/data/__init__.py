"""Data shared by all tasks: splits and few-shot draws, images, records. Import the submodules; nothing is loaded here."""
