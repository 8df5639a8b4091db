"""PyTorch's "Transfer Learning for Computer Vision Tutorial", on two folders.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html

    KERAS_HOME=../shared/keras python -m benchmarks.rivals.pytorch_tutorial --train DIR --validation DIR

As the tutorial has it: a `DataLoader` with four workers, or one per core where there are fewer, which decode every
picture in every epoch; the shorter side resized to 256 and the centre 224 pixels square, or, with --augment, a random
resized crop and flip for training; cross entropy; `SGD(lr=0.001, momentum=0.9)`, a tenth of it after each seven epochs;
the best epoch's weights saved, and loaded at the end. Its "ConvNet as fixed feature extractor" is the frozen phase, its
"Finetuning the ConvNet" the other. `model.train()` in its loop holds for the frozen network too, so batch normalisation
uses each batch's statistics in training and keeps moving averages of them (with PyTorch's momentum): they are not
frozen in either phase.

What differs: the network is Keras's MobileNet 0.25 with Keras's weights, read from its file in KERAS_HOME, instead of
ResNet-18, and pixels go to [-1, 1], which those weights need; fine-tuning goes on from the frozen phase's network, head
and all, where the tutorial's two are alternatives; augmentation is an option; the default batch is 32, the tutorial's
is 4. torchvision's dataset and transforms are written here with Pillow and PyTorch, to the same pixels: its package
does not load beside a PyTorch without CUDA.

What is counted is said in `benchmarks.rivals.Result`; accuracies are of the last epoch, not of the best. Standard
output ends with one line of JSON. The exit code is 3 if PyTorch is not installed.
"""

import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
from PIL import Image

from benchmarks.rivals import Phase, Result, arguments

try:
    import torch
    from torch import nn
    from torch.optim import SGD
    from torch.optim.lr_scheduler import StepLR
    from torch.utils.data import DataLoader, Dataset
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name != "torch":
        raise
    print("The PyTorch tutorial needs PyTorch: pip install -e '.[bench]'", file=sys.stderr)
    sys.exit(3)

WEIGHTS = "models/mobilenet_2_5_224_tf_no_top.h5"
SIZE = 224
# Channels and stride of each depthwise separable block, for alpha 0.25.
BLOCKS = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # torchvision's


class MobileNet(nn.Module):
    """MobileNet v1, 0.25 wide, with a linear head: pixels (B, 3, 224, 224) in [-1, 1] to logits (B, classes).

    `features` has Keras's layers under Keras's names.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self._add("conv1", 3, 8, kernel=3, stride=2)
        channels = 8
        for number, (width, stride) in enumerate(BLOCKS, start=1):
            self._add(f"conv_dw_{number}", channels, channels, kernel=3, stride=stride, groups=channels)
            self._add(f"conv_pw_{number}", channels, width)
            channels = width
        self.fc = nn.Linear(channels, classes)

    def _add(self, name: str, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        if stride == 2:  # Keras pads at the bottom and right alone
            self.features.add_module(f"{name}_pad", nn.ZeroPad2d((0, 1, 0, 1)))
        padding = kernel // 2 if stride == 1 else 0
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.features.add_module(name, convolution)
        self.features.add_module(f"{name}_bn", nn.BatchNorm2d(outputs, eps=1e-3))
        self.features.add_module(f"{name}_relu", nn.ReLU6(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))

    def load(self, path: Path) -> None:
        """Copies Keras's weights from its HDF5 file into `features`."""
        with h5py.File(path) as file, torch.no_grad():
            for name, layer in self.features.named_children():
                if isinstance(layer, nn.Conv2d):
                    # (height, width, inputs, outputs), and (height, width, channels, 1) if depthwise.
                    kernel = file[name][name]["kernel:0" if layer.groups == 1 else "depthwise_kernel:0"][()]
                    order = (3, 2, 0, 1) if layer.groups == 1 else (2, 3, 0, 1)
                    layer.weight.copy_(torch.from_numpy(kernel.transpose(order).copy()))
                elif isinstance(layer, nn.BatchNorm2d):
                    values = file[name][name]
                    layer.weight.copy_(torch.from_numpy(values["gamma:0"][()]))
                    layer.bias.copy_(torch.from_numpy(values["beta:0"][()]))
                    layer.running_mean.copy_(torch.from_numpy(values["moving_mean:0"][()]))
                    layer.running_var.copy_(torch.from_numpy(values["moving_variance:0"][()]))


def centre(image: Image.Image) -> Image.Image:
    """`Resize(256)`, then `CenterCrop(224)`."""
    shorter = min(image.size)
    image = image.resize(tuple(256 * side // shorter for side in image.size), Image.Resampling.BILINEAR)
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return image.crop((left, top, left + SIZE, top + SIZE))


def random_crop(image: Image.Image) -> Image.Image:
    """`RandomResizedCrop(224)`, then `RandomHorizontalFlip()`."""
    image = image.crop(_random_box(*image.size)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """8 % to 100 % of the area, 3:4 to 4:3; after ten draws that do not fit, the centre."""
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.08, 1.0).item()
        ratio = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,)))
            left = int(torch.randint(0, width - w + 1, (1,)))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class ImageFolder(Dataset):
    """The pictures of a folder with a folder per class: pixels (3, 224, 224) in [-1, 1], and the class's place."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.samples = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[place]
        with Image.open(path) as image:
            image = self.transform(image.convert("RGB"))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5), label


def one_pass(model: MobileNet, loader: DataLoader, device: torch.device, optimizer: SGD | None = None) -> float:
    """The accuracy over one pass of the pictures: of training with an optimiser, of validation without."""
    training = optimizer is not None
    model.train(training)
    criterion = nn.CrossEntropyLoss()
    corrects = 0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        with torch.set_grad_enabled(training):
            outputs = model(inputs)
            loss = criterion(outputs, labels)
        if training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        corrects += int((outputs.argmax(dim=1) == labels).sum())
    return corrects / len(loader.dataset)


def train_phase(model: MobileNet, loaders: dict[str, DataLoader], device: torch.device, epochs: int) -> Phase:
    """Trains what requires gradients, and leaves the model with the weights of its best epoch."""
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=7, gamma=0.1)
    epoch_seconds: list[float] = []
    accuracies: list[float] = []
    with TemporaryDirectory() as folder:
        best = Path(folder) / "best_model_params.pt"
        torch.save(model.state_dict(), best)
        for _ in range(epochs):
            start = time.perf_counter()
            one_pass(model, loaders["train"], device, optimizer)
            scheduler.step()
            accuracy = one_pass(model, loaders["val"], device)
            if accuracy > max(accuracies, default=0.0):
                torch.save(model.state_dict(), best)
            accuracies.append(accuracy)
            epoch_seconds.append(time.perf_counter() - start)
        model.load_state_dict(torch.load(best, weights_only=True))
    return Phase(epoch_seconds, accuracies)


def unfreeze(model: MobileNet, what: str) -> None:
    """Unfreezes "all" of the network, as the tutorial does, or its "last-two-blocks"."""
    names = [name for name, _ in model.features.named_children()]
    first = names.index("conv_dw_12") if what == "last-two-blocks" else 0
    model.features[first:].requires_grad_(True)


def weights() -> Path:
    """Keras's weight file. Exits with a sentence if it is not there."""
    path = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / WEIGHTS
    if not path.is_file():
        sys.exit(f"No weights at {path}: benchmarks.rivals.keras_guide, run first, fetches them; or set KERAS_HOME.")
    return path


def main() -> None:
    options = arguments(__doc__)
    torch.manual_seed(options.seed)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    building = time.perf_counter()
    classes = sum(path.is_dir() for path in options.train.iterdir())
    model = MobileNet(classes)
    model.load(weights())
    model.to(device)

    freezing = time.perf_counter()
    datasets = {
        "train": ImageFolder(options.train, random_crop if options.augment else centre),
        "val": ImageFolder(options.validation, centre),
    }
    workers = min(4, len(os.sched_getaffinity(0)))  # PyTorch warns of more than there are cores
    loaders = {
        phase: DataLoader(dataset, batch_size=options.batch_size, shuffle=True, num_workers=workers)
        for phase, dataset in datasets.items()
    }
    model.features.requires_grad_(False)
    frozen = Phase([], [])
    if options.frozen_epochs:
        frozen = train_phase(model, loaders, device, options.frozen_epochs)

    tuning = time.perf_counter()
    tuned = Phase([], [])
    if options.fine_tune_epochs:
        unfreeze(model, options.unfreeze)
        tuned = train_phase(model, loaders, device, options.fine_tune_epochs)
    end = time.perf_counter()

    Result.of(
        build=freezing - building,
        frozen=(tuning - freezing, frozen),
        tuned=(end - tuning, tuned),
        images=len(datasets["train"]),
        python=platform.python_version(),
        torch=torch.__version__,
    ).print()


if __name__ == "__main__":
    main()
