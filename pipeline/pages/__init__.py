"""Web pages that need no network: one file each, with their style, their charts and their pictures in them.

A page is a Jinja template beside this file that extends `base.html`. Whatever a template shows is escaped, unless a
function here made it. Charts are drawn once, by matplotlib, and become PNG files for MLflow and SVG for the page, where
they follow the reader's light or dark colours.

Shape letters: H height, W width.
"""

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import write_atomically

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# A palette that colour-blind readers can tell apart: Okabe and Ito, 2008.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
INK, SOFT, LINE, PAPER, TINT = "#1d2430", "#5b6675", "#dfe3e8", "#ffffff", "#f0f3f6"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)

PHONE = 4.1
"""A chart is so many inches wide on a phone: 328 CSS pixels."""

TINY = 64
"""A picture whose sides are smaller than this, in pixels, is drawn with its pixels as squares."""

# What a page's style calls these colours; it has other values for them in the dark.
_VARIABLES = {
    BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)", PURPLE: "var(--purple)", SKY: "var(--sky)",
    INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", PAPER: "var(--card)", TINT: "var(--tint)",
}  # fmt: skip

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a class may have dollar signs in its name
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.prop_cycle": f"cycler('color', {list(SERIES)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: it is found, copied, and read aloud
}

# Behind matplotlib's own font, those that write other scripts, where they are installed.
_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A drawing, how to read it, and what it shows in words for who cannot see it."""

    figure: "Figure"
    caption: str
    alt: str

    def save(self, path: Path) -> None:
        """As a picture, by the ending of `path`: .png or .svg."""
        self.figure.savefig(path)

    @property
    def wide(self) -> bool:
        """Whether a page gives it the full width."""
        return bool(self.figure.get_figwidth() > 8)

    @property
    def svg(self) -> "Markup":
        """As an element of a page; beside a wide one the same, laid out for phones. The page's style shows one."""
        width, height = self.figure.get_size_inches()
        if width <= PHONE:
            return self._element("")
        wide = self._element(" for-desk")
        pictures = any(axes.images for axes in self.figure.axes)
        self.figure.set_size_inches(PHONE, height / 2 if pictures else height)
        narrow = self._element(" for-phone")
        self.figure.set_size_inches(width, height)
        return wide + narrow

    def _element(self, kind: str) -> "Markup":
        from markupsafe import Markup, escape
        from matplotlib import rc_context

        file = io.StringIO()
        key = hashlib.sha256((self.alt + kind).encode(errors="backslashreplace")).hexdigest()[:12]
        # The salt keeps the names of shapes apart between the charts of one page.
        with rc_context({"svg.hashsalt": key}):
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        text = file.getvalue()
        text = text[text.index("<svg") :]
        # The page has a style of its own, and one name twice in it would be a mistake.
        text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r' id="[a-zA-Z0-9.]+(?:_[a-z]+)*_\d+"', "", text)
        text = re.sub("#[0-9a-f]{6}", lambda color: _VARIABLES.get(color[0], color[0]), text)
        width = round(80 * self.figure.get_figwidth())  # 80 CSS pixels an inch: the text of all charts has one size
        opening = f'<svg class="chart{kind}" role="img" aria-label="{escape(self.alt)}" style="width: {width}px"'
        return Markup(re.sub(r'<svg(.*?) width="[^"]*" height="[^"]*"', lambda tag: opening + tag[1], text, count=1))


@contextmanager
def drawing() -> Iterator[None]:
    """Charts are made and saved inside of this: they share one style, and write every script there is a font for."""
    import matplotlib
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    family = ["DejaVu Sans", *(font for font in _FONTS if font in installed)]
    with matplotlib.rc_context(STYLE | {"font.family": family}), warnings.catch_warnings():
        # A script that no installed font writes shows as boxes; the page's tables have the names.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


def figure(width: float, height: float) -> "Figure":
    """An empty figure, sides in inches, that fits its axes around their labels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def short(name: str, longest: int = 24) -> str:
    """A name as a label in a chart."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def embedded(picture: np.ndarray, side: int, lossless: bool = False) -> str:
    """A picture as the address of an <img>, its content in it.

    Args:
        picture: uint8 [H, W, 3], [H, W, 4] with `lossless`, or [H, W]; 0..255.
        side: the longer side on the page, in pixels; a larger picture is made smaller.
        lossless: as PNG, where JPEG would smear small or flat drawings.
    """
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if lossless:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=82, optimize=True)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Tile:
    """A picture on a page: its address, its content in it, and whether its pixels are drawn as squares."""

    src: str
    tiny: bool


def tile(picture: np.ndarray, side: int) -> Tile:
    """A picture for a page, its longer side at most so many pixels; one below TINY stays as sharp as it is.

    Args:
        picture: uint8 [H, W, 3] or [H, W], 0..255.
        side: of the larger picture, as in `embedded`.
    """
    tiny = max(picture.shape[:2]) < TINY
    return Tile(embedded(picture, side, lossless=tiny), tiny)


def percent(share: float) -> str:
    """A share, 0 to 1, in words: "98.5 %"."""
    return f"{100 * share:.1f} %"


def write(path: Path, template: str, **fields: Any) -> None:
    """Fills a template and writes the page, whole or not at all.

    Args:
        path: an HTML file in an existing folder.
        template: a file beside this one, e.g. report.html.
        fields: what it shows; each is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    with drawing():  # A template draws the charts it is given.
        page = environment.get_template(template).render(fields)
    # Only a lone surrogate, from a file name that is not UTF-8, cannot be encoded.
    write_atomically(path, page.encode("utf-8", errors="xmlcharrefreplace").decode("utf-8"))
