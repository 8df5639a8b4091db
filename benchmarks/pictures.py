"""The pictures in docs/images that show a program at work: `python -m benchmarks.pictures terminal.svg`."""

import argparse
import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parent.parent
HOME = "/home/you/graft"
COLUMNS = 100

_TOKEN = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+")


def session(command: list[str], columns: int, cwd: Path, **environment: str) -> tuple[int, str]:
    """Runs a command on a terminal so many columns wide: its exit code, and all that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""} | environment
    process = subprocess.Popen(command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # The other end is closed.
            break
        if not part:
            break
        written += part
    os.close(ours)
    return process.wait(), written.decode(errors="replace")


def screen(written: str) -> list[str]:
    """What a terminal shows in the end, line by line, colours included: as much of one as Rich asks for."""
    lines, at, home = [""], 0, False
    for token in _TOKEN.findall(written):
        if token == "\r":
            home = True
        elif token == "\n":
            at, home = at + 1, True
            lines += [""] * (at + 1 - len(lines))
        elif token.startswith("\x1b[") and token[-1] == "A":
            at = max(0, at - int(token[2:-1] or 1))
        elif token.startswith("\x1b[") and token[-1] == "K":
            lines[at] = ""
        elif not token.startswith("\x1b[") or token[-1] == "m":
            lines[at], home = token if home else lines[at] + token, False
    return lines


def terminal(path: Path) -> None:
    """Trains on the digits and keeps what the terminal shows in the middle, as SVG without fonts from elsewhere."""
    command = ["graft", "run", "configs/digits-0-4.yaml"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(ROOT / "configs", folder / "configs")
        graft = Path(sys.executable).parent / "graft"
        code, written = session([str(graft), *command[1:]], COLUMNS, folder)
    if code:
        raise SystemExit(written)
    moment = re.search(r"  epoch 1\d/\d+ [^\r\n]* left[^\r\n]*", written)
    assert moment is not None, "one frame of an epoch takes a tenth of a second"
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "green"), (" ".join(command), "bold")))
    for line in screen(written[: moment.end()].replace(str(folder), HOME)):
        console.print(Text.from_ansi(line))
    page = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(path), title="graft", theme=MONOKAI, code_format=page, unique_id="graft")


def report(path: Path) -> None:
    """Trains on the digits, not for long, and keeps what the report shows of its mistakes."""
    graft = Path(sys.executable).parent / "graft"
    with tempfile.TemporaryDirectory() as name:
        command = [str(graft), "run", "configs/digits-5-9.yaml", "--set", "backbone.weights=none"]
        settings = ["phases.0.epochs=4", "phases.1.epochs=3", f"output_dir={name}/runs", f"export.dir={name}/export"]
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        (page,) = Path(name).glob("runs/*/*/report.html")
        chromium = ["chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1460"]
        subprocess.run([*chromium, f"--screenshot={name}/report.png", page.as_uri()], check=True)
        with Image.open(f"{name}/report.png") as picture:
            picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


PICTURES = {"terminal.svg": terminal, "report.png": report}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", choices=PICTURES)
    chosen = parser.parse_args().picture
    PICTURES[chosen](ROOT / "docs" / "images" / chosen)
