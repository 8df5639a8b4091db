"""Made-up pictures, and a folder of them, clean or with every defect planted that a look at the data is to find."""

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from pipeline.config import RunConfig

CLASSES = ("discs", "stripes", "waves")
WIDTH, HEIGHT = 160, 120


@dataclass
class Planted:
    """By kind of finding, the names of the pictures that must be found; `touched` may be found for any reason."""

    kinds: dict[str, set[str]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)

    def add(self, kind, *names):
        self.kinds.setdefault(kind, set()).update(names)
        self.touched.update(names)


def picture(label, seed):
    """An image of 160 × 120 pixels. Each is other than all others; those of one class share colours and a pattern."""
    random = np.random.default_rng([CLASSES.index(label), seed])
    small = random.integers(0, 256, (8, 10, 3)).astype(np.uint8)
    ground = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    if label == "discs":
        centres = random.uniform((0, 0), (HEIGHT, WIDTH), (12, 2))
        pattern = (np.min([np.hypot(y - cy, x - cx) for cy, cx in centres], axis=0) < random.uniform(7, 11)).astype(
            float
        )
    elif label == "stripes":
        angle, width = random.uniform(-0.4, 0.4), random.uniform(7, 12)
        pattern = (((x * np.cos(angle) + y * np.sin(angle)) // width) % 2).astype(float)
    else:
        pattern = 0.5 + 0.5 * np.sin(y / random.uniform(3, 5) + 3 * np.sin(x / random.uniform(12, 20)))
    colour = np.eye(3)[CLASSES.index(label)] * 150 + random.uniform(0, 40, 3)
    share = pattern[..., None] * 0.6
    noise = random.normal(0, 6, ground.shape)
    return Image.fromarray((ground * (0.75 - share) + colour * (0.3 + share) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image, quality=92):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def plant_clean(root, each=40):
    """Train and test folders without a defect: `each` pictures of every class in train, a quarter of that in test."""
    for label in CLASSES:
        for split, seeds in (("train", range(each)), ("test", range(1000, 1000 + each // 4))):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for seed in seeds:
                (folder / f"{seed}.jpg").write_bytes(jpeg(picture(label, seed)))


def plant(root, each=40):
    """The clean folder, and every defect beside its pictures."""
    plant_clean(root, each)
    planted = Planted()

    def write(name, content):
        (root / name).write_bytes(content if isinstance(content, bytes) else jpeg(content))
        return name

    def read(name):
        return (root / name).read_bytes()

    whole = read("train/discs/0.jpg")
    planted.add(
        "damaged",
        write("train/discs/cut off.jpg", whole[: len(whole) // 2]),
        write("train/stripes/empty.jpg", b""),
        write("train/waves/letter.jpg", b"Dear Sir or Madam,"),
    )
    planted.add("copy", write("train/discs/copy.jpg", read("train/discs/1.jpg")))
    near = write("train/stripes/near copy.jpg", jpeg(picture("stripes", 1).crop((4, 3, 157, 118)), 60))
    planted.add("near copy", near)
    planted.touched.add("train/stripes/1.jpg")
    write("train/waves/copied by other.jpg", read("train/stripes/2.jpg"))
    planted.add("conflicting labels", "train/waves/copied by other.jpg", "train/stripes/2.jpg")
    write("train/discs/nearly another.jpg", jpeg(picture("waves", 3).resize((120, 90)), 80))
    planted.add("conflicting labels", "train/discs/nearly another.jpg", "train/waves/3.jpg")
    planted.add("leak", write("train/waves/of test.jpg", jpeg(picture("waves", 1000), 50)))
    planted.add("near copy", "train/waves/of test.jpg")
    planted.touched.add("test/waves/1000.jpg")
    planted.add("leak", write("train/discs/the same as in test.jpg", read("test/discs/1001.jpg")))
    planted.add("copy", "train/discs/the same as in test.jpg")
    planted.touched.add("test/discs/1001.jpg")

    extra = iter(range(2000, 3000))
    for label in CLASSES:
        folder = f"train/{label}"
        image = picture(label, next(extra))
        planted.add("blurred", write(f"{folder}/blurred.jpg", image.filter(ImageFilter.GaussianBlur(6))))
        planted.add("dark", write(f"{folder}/dark.jpg", picture(label, next(extra)).point(lambda v: v * 0.15)))
        planted.add(
            "bright", write(f"{folder}/bright.jpg", picture(label, next(extra)).point(lambda v: 205 + v * 0.19))
        )
        planted.add(
            "constant",
            write(f"{folder}/constant.jpg", Image.new("RGB", (WIDTH, HEIGHT), f"#{4 + CLASSES.index(label)}07040")),
        )
        planted.add("odd size", write(f"{folder}/tiny.jpg", picture(label, next(extra)).resize((24, 20))))
        planted.add("odd shape", write(f"{folder}/narrow.jpg", picture(label, next(extra)).resize((600, 90))))
        other = CLASSES[(CLASSES.index(label) + 1) % 3]
        planted.add("likely mislabel", write(f"{folder}/mislabelled.jpg", picture(other, next(extra))))
    planted.add("odd size", write("train/waves/huge.jpg", picture("waves", next(extra)).resize((1280, 960))))
    checks = Image.fromarray((np.indices((HEIGHT, WIDTH)).sum(axis=0) // 40 % 2 * 255).astype(np.uint8)).convert("RGB")
    planted.add("outlier", write("train/waves/checks.jpg", checks))
    return planted


def scene(seed: int, side: int = 128) -> Image.Image:
    """A coloured random field whose amplitudes fall with frequency as those of photographs do."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    shape = 4, *frequency.shape
    waves = (random.normal(size=shape) + 1j * random.normal(size=shape)) / frequency**1.3
    luminance, *colours = np.fft.irfft2(waves, s=(side, side))
    pixels = np.stack([luminance + 0.3 * colour for colour in colours], axis=-1)
    pixels = (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray((128 + 45 * pixels).clip(0, 255).astype(np.uint8))


AUGMENT = {"flip": "horizontal", "rotation": 15.0, "mixup": 0.4}


def config(root, out, **data):
    """An untrained network, so that labels are judged by pixels."""
    return RunConfig.model_validate(
        {
            "name": "made-up",
            "data": {"source": "folder", "path": str(root), "image_size": 96, "augment": AUGMENT} | data,
            "backbone": {"name": "mobilenet", "weights": "none", "options": {"alpha": 0.25}},
            "output_dir": str(out),
        }
    )
