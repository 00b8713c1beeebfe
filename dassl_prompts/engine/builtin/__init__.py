"""The built-in engine: the part of Dassl 0.6.3 that prompt-learning methods use, with the same behaviour.

Deliberate differences: images are not checked one by one when a dataset is listed but when they are read;
schedules have a flat state; checkpoints load with ``weights_only=True``; the logger never closes the console;
top-k accuracy works; saving the best model leaves the pointer to the last one alone. Domain-adaptation
methods, downloads and policy augmentations are left out.
"""
