"""The README: its code runs as printed, with the numbers that it states; its links exist."""

import re

from pages import ROOT, code_blocks, relative_links, run_blocks

README = ROOT / "README.md"


def test_quick_start_runs_as_printed(capsys):
    names = run_blocks(README)
    estimates = {name: values.item() for name, values in names["fit"].params.values.items()}
    assert round(estimates["level"]) == 1469
    assert round(estimates["noise"], -1) == 15100
    out = capsys.readouterr().out
    assert "std error" in out
    assert "1971-01-01" in out
    assert len(code_blocks(README)) == 1


def test_quick_start_is_short():
    (block,) = code_blocks(README)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 14


def test_links_and_pictures_exist():
    text = README.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 1
    for link in (*relative_links(README), *pictures):
        assert (ROOT / link).exists(), link
    assert (ROOT / pictures[0]).stat().st_size < 150_000


def test_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
    assert {"demo", "test"} <= set(named)
    assert set(named) <= set(targets)


def test_engines_of_the_table_exist():
    import ssmkit as sk

    rows = re.findall(r"^\| `(\w+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 6
    for name in rows:
        assert hasattr(sk, name)
