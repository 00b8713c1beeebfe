"""``python -m dassl_prompts.demo``: composed search, classification and results in the browser, and as JSON over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from pathlib import Path

from dassl_prompts.engine.ending import ending

EPILOG = """\
examples:
  python -m dassl_prompts.demo
  python -m dassl_prompts.demo --index photos --run output/composed/.../PVLF/.../seed1
  python -m dassl_prompts.demo --classify output/.../DPC_CoOp/.../seed1 --results output

exit codes: 0 ended by Ctrl-C, 2 wrong input, or the extra dassl-prompts[demo] is not installed
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.demo",
        description="Search, classify and look at results in the browser; the same as JSON over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--index", metavar="INDEX", help="index to search, of `search index` (default: the embedded emoji)")
    p.add_argument(
        "--run",
        nargs="+",
        default=[],
        metavar="RUN_DIR",
        help="runs of composed retrieval with the towers of the index",
    )
    p.add_argument(
        "--classify", nargs="+", default=[], metavar="RUN_DIR", help="trained runs to classify pictures with"
    )
    p.add_argument("--results", metavar="OUTPUT", help="output folder whose tables and plots are shown")
    p.add_argument(
        "--import", nargs="+", default=[], metavar="MODULE", help="Python modules or files with trainers of your own"
    )
    p.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine alone may ask)"
    )
    p.add_argument("--port", type=int, default=7860, help="default 7860")
    return p


def work(args: argparse.Namespace) -> int:
    import dassl_prompts
    from dassl_prompts import plugins

    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port is {args.port}; give a number from 0 to 65535")
    if args.results and not os.path.isdir(args.results):
        raise NotADirectoryError(f"--results {args.results} is not a folder")
    require_packages()
    plugins.load(getattr(args, "import"))
    dassl_prompts.register_all("replace")
    service = build_service(args.index, args.run, args.classify)
    serve(service, args.results, args.host, args.port)
    return 0


def require_packages() -> None:
    """
    Raises:
        ImportError: the extra is not installed; says how to.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'dassl-prompts[demo]'") from error


def build_service(index: str | None, runs: list[str], classify: list[str]):
    """The service on an index, None for the embedded emoji.

    Raises:
        FileNotFoundError, ValueError: no index, no run, or one that does not fit.
    """
    from dassl_prompts.composed.answers import Answerer
    from dassl_prompts.demo import emoji_set
    from dassl_prompts.demo.classify import Classifier
    from dassl_prompts.demo.service import Service

    classifiers = [Classifier(folder) for folder in classify]
    targets = None if index else emoji_set.make_index(emoji_set.default_place())
    return Service(Answerer.open(index or emoji_set.default_place(), runs), classifiers, targets)


def serve(service, results: str | None, host: str, port: int) -> None:
    """Answer until somebody presses Ctrl-C."""
    import uvicorn

    from dassl_prompts.demo.page import mount
    from dassl_prompts.demo.web import LOCAL, build_app

    app = mount(build_app(service, LOCAL if host in LOCAL else ("*",)), service, Path(results) if results else None)
    logging.getLogger("uvicorn.error").addFilter(told_by_ending)
    print(f"Listening at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,  # an open page keeps a connection for as long as it is open
        h11_max_incomplete_event_size=1 << 16,
    )


def told_by_ending(record: logging.LogRecord) -> bool:
    """Leaves out the tracebacks of requests that the end of the server cuts."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return ending(lambda: work(args))


if __name__ == "__main__":
    raise SystemExit(main())
