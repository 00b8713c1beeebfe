"""The troubleshooting page quotes messages that the code really has; links of the pages lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def literals():
    """All string constants of the package, pieces of f-strings joined by a mark."""
    found = []
    for folder in ("dassl_prompts", "trainers", "datasets", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def python_blocks(page):
    """The Python code blocks of a page, named from the root of the repository."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def test_troubleshooting_quotes_real_messages():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\*\*`(.+?)`\*\* — ", page, re.M)
    assert len(quoted) > 30
    known = literals()
    lost = []
    for message in quoted:
        pieces = [re.escape(piece) for piece in re.split(r"\.\.\.+", message)]
        pattern = re.compile(".*?".join(pieces), re.S)
        if not any(pattern.search(text) for text in known):
            lost.append(message)
    assert not lost, f"no such messages in the code: {lost}"


@pytest.mark.parametrize("page", ["running.md", "coop_users.md", "troubleshooting.md"])
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([\w./]*\.md)?(#[\w-]+)?\)", text):
        file = DOCS / (target or page)
        assert file.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor[1:] in anchors, anchor


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_relative_links_lead_to_files(page):
    """Links and pictures; code blocks hold none."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(\s*<?([^)\s>]+)", text)]
    local = {target for target in targets if target and not re.match(r"[a-z]+:", target)}
    lost = sorted(target for target in local if not (page.parent / target).exists())
    assert not lost, f"{page} links to files that are not there: {lost}"


def test_commands_of_the_running_page_parse():
    """Every flag in a code block of docs/running.md exists."""
    from dassl_prompts.predict.__main__ import parser as predict
    from dassl_prompts.report.__main__ import parser as report
    from dassl_prompts.run.__main__ import parser as run

    page = (DOCS / "running.md").read_text(encoding="utf-8")
    commands = re.findall(r"python -m dassl_prompts\.(run|report|predict) ([^\n#>]+)", page)
    assert len(commands) >= 9
    for name, words in commands:
        known = {
            option
            for action in {"run": run, "report": report, "predict": predict}[name]()._actions
            for option in action.option_strings
        }
        assert set(re.findall(r"(?<!\S)--[\w-]+", words)) <= known, words


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *(p for p in sorted(DOCS.glob("*.md")) if p.name != "coop_users.md")],
    ids=lambda page: page.name,
)
def test_scripts_and_their_datasets_exist(page):
    """``bash scripts/METHOD/PROTOCOL.sh DATASET`` in a page (coop_users.md also names CoOp's own scripts)."""
    from dassl_prompts.fdrd.domains import get_domain
    from dassl_prompts.run.composed import DATASETS
    from dassl_prompts.trainers.pvlf.study import TRAINING_SETS

    configurations = {path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml")}
    for script, dataset in re.findall(r"bash (scripts/[\w/]+\.sh)(?: ([a-z]\w+))?", page.read_text(encoding="utf-8")):
        assert (ROOT / script).is_file(), script
        if not dataset or script.count("/") == 1:  # a script of no method takes no dataset
            continue
        folder = script.split("/")[1]
        if folder in ("pvlf", "transagg", "pic2word", "lincir"):
            known = TRAINING_SETS if "/table" in script else DATASETS
            assert dataset in known, (script, dataset)
        elif folder in ("dcar", "itr"):
            assert dataset == "emoji" or get_domain(dataset)
        else:
            assert dataset in configurations, (script, dataset)
