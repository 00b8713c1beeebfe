"""Entry point with CoOp's flags: ``python train.py --trainer CoOp --dataset-config-file ... --config-file ...``."""

import sys
from pathlib import Path

# Python puts this folder first on the path, where datasets/ and trainers/ would answer to names that belong to others.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

try:
    from dassl_prompts.train import main
except ModuleNotFoundError as error:
    if error.name != "dassl_prompts":
        raise
    sys.exit(
        f"dassl_prompts is not installed in {sys.executable}: run `pip install -e {HERE}` or `bash scripts/quickstart.sh`"
    )

if __name__ == "__main__":
    main()
