"""docs/benchmarks.md, of which each program writes the part between its own two markers."""

from pathlib import Path

DOCUMENT = Path("docs/benchmarks.md")


def write_part(command: str, text: str, path: Path = DOCUMENT) -> None:
    """Puts `text` in place of what `command` wrote before, or at the end."""
    start, end = f"<!-- {command} -->\n", f"<!-- end of {command} -->\n"
    document = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found, rest = document.partition(start)
    if found:
        _, _, after = rest.partition(end)
    else:
        before, after = f"{before.rstrip()}\n\n".lstrip(), ""
    path.write_text(f"{before}{start}{text.strip()}\n{end}{after}", encoding="utf-8")
    print(f"{path} is written")
