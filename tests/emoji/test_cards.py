"""docs/emoji.md shows the tables that the command prints (the zero-shot table takes minutes: not here)."""

from pathlib import Path

from dassl_prompts.emoji import cards as emoji_cards

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "emoji.md").read_text(encoding="utf-8")


def test_page_shows_the_tables_as_printed():
    for table in emoji_cards.data_tables() + emoji_cards.model_tables():
        assert table.strip() in PAGE, table


def test_page_has_every_zero_shot_row():
    rows = [line for line in PAGE.splitlines() if line.startswith("| composed queries, ")]
    assert len(rows) == 12
    assert "chance" in PAGE
