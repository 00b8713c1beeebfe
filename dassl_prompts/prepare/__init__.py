"""Getting and examining datasets: ``python -m dassl_prompts.prepare --help``."""
