"""``python -m dassl_prompts.check``: is this environment able to run the project? Says what is wrong and how to mend it."""

from __future__ import annotations

import argparse
import sys


class TorchMismatch(ImportError):
    """torchvision was built for another torch."""


def check_torch_pair() -> str:
    """Versions of torch and torchvision.

    Raises:
        TorchMismatch: they do not belong together, which shows as a missing ``torchvision::nms`` operator; says what to do.
    """
    import torch

    try:
        import torchvision
    except (RuntimeError, ImportError) as error:
        raise TorchMismatch(
            f"torch {torch.__version__} and the installed torchvision do not belong together ({error}).\n"
            "Install both in one call, so that pip picks a matching pair:\n"
            "  pip uninstall -y torch torchvision && pip install torch torchvision"
        ) from error
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}"


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m dassl_prompts.check",
        description="Whether torch and torchvision belong together, and the device.",
    )


def main(argv: list[str] | None = None) -> int:
    parser().parse_args(argv)
    try:
        pair = check_torch_pair()
    except TorchMismatch as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    import torch

    from dassl_prompts import __version__
    from dassl_prompts.engine import ENGINE

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"== dassl-prompts {__version__}, engine {ENGINE}, {pair}, {device}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
