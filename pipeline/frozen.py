"""The frozen layers of one phase: what they make of a picture is computed once and kept, or computed on the fly.

Shape letters: n pictures, H height, W width; ... the shape of one picture's activation.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Lock
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import augment, trunk
from pipeline.activations import Key, Store
from pipeline.backbones.weights import digest
from pipeline.config import Augment
from pipeline.console import Console
from pipeline.errors import CacheError
from pipeline.model import Division
from pipeline.parallel import in_order
from pipeline.policy import Keeping, keeping, no_room
from pipeline.splits import Split

PLAIN = -1
"""The view of a picture that is not augmented. Any other number is the seed of an augmentation."""

_TRIAL = 16  # Pictures that engines are compared and timed on.
_KEYS = 10_000  # Keys that are looked up together.
_CHUNK = 32  # Views that go through the layers together, and into the store.
_LARGEST = {"float16": 65504.0}


class Views:
    """Pictures as the network is to see them: plain, or augmented by a seed.

    A view follows from the picture's content, the augmentation's settings and the seed alone.
    """

    def __init__(self, settings: Augment, image_shape: tuple[int, int, int]) -> None:
        alone = settings.model_dump(mode="json", exclude={"mixup", "cutmix"})
        self._settings = json.dumps(alone | {"version": augment.VERSION}, sort_keys=True)
        self._augment, self._image_shape = settings, image_shape
        self._change: Callable[..., tf.Tensor] | None = None
        self._starting = Lock()

    def pixels(self, images: np.ndarray, contents: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """float32 [n, H, W, 3] in 0..255: views of uint8 [n, H, W, 3].

        Args:
            images: the pictures.
            contents: int32 [n], a number that stands for each picture's content.
            seeds: int32 [n], PLAIN or the seed of an augmentation.
        """
        views = images.astype(np.float32)
        changed = np.flatnonzero(seeds != PLAIN)
        if len(changed):
            with self._starting:  # Compiled when it is first needed: not where all views are in the store.
                self._change = self._change or augment.augmentation(self._augment, self._image_shape)
            assert self._change is not None
            pairs = np.stack([contents[changed], seeds[changed]], axis=1)
            views[changed] = self._change(tf.constant(views[changed]), tf.constant(pairs)).numpy()
        return views

    def key(self, seed: int) -> bytes:
        """Names a view in the store: all that it follows from but the picture."""
        return b"" if seed == PLAIN else hashlib.sha256(f"{self._settings} {seed}".encode()).digest()[:16]


class Frozen:
    """The frozen layers of one phase, in inference mode.

    Attributes:
        kept: whether `read` may be called.
        uses: how many activations were asked for.
        computed: how many were computed.
        seconds: what computing one takes; 0 where that is not known.
    """

    def __init__(
        self,
        division: Division,
        views: Views,
        dtype: str | None,
        settings: dict[str, Any],
        store: Store | None,
        trial: Split,
        console: Console,
        engine: str | None = None,
    ) -> None:
        """
        Args:
            division: what is frozen; its cut is not None.
            views: of the training pictures.
            dtype: what activations are rounded to, whether they are kept or not; None leaves them as they are.
            settings: what decides an activation besides the layers, the picture and its view.
            store: where they are kept; None where they are not.
            trial: its first pictures are what engines are compared on.
            console: hears of trouble.
            engine: what is to compute them, where that has been chosen: engines round differently.
        """
        assert division.frozen is not None
        self.kept = False
        self.uses = self.computed = 0
        self.seconds = 0.0
        self._layers = division.frozen
        self._shape = division.frozen.output_shape[1:]
        self._views = views
        self._dtype = dtype
        self._store = store
        self._trial = trial
        self._console = console
        self._settings: dict[str, Any] = {}
        if store is not None:
            own = {"cut": division.cut, "shape": list(self._shape), "weights": digest(division.frozen), "dtype": dtype}
            self._settings = settings | own
        self._engine = engine
        self._space = 0
        self._forward: trunk.Forward | None = None
        self._starting, self._counting = Lock(), Lock()

    @property
    def engine(self) -> str:
        """What computes the layers, here or when the store was filled."""
        return self._engine or self.forward.engine

    @property
    def forward(self) -> trunk.Forward:
        """The forward pass, started when it is first needed."""
        with self._starting:
            if self._forward is None:
                rows = np.arange(min(_TRIAL, len(self._trial)))
                with closing(self._trial.stream(rows, _TRIAL)) as batches:
                    pictures = next(batches)[1].astype(np.float32)
                self._forward = trunk.fastest(self._layers, pictures, self._engine)
                self.seconds = self.seconds or self._forward.seconds
                if self._forward.why:
                    self._console.say(f"  the frozen layers run on TensorFlow: {self._forward.why}")
            return self._forward

    def rounded(self, features: np.ndarray) -> np.ndarray:
        """float32 [n, ...] as it would come out of the store."""
        if self._dtype in (None, "float32"):
            return features
        limit = _LARGEST[self._dtype]
        return features.clip(-limit, limit).astype(self._dtype).astype(np.float32)

    def compute(self, views: np.ndarray) -> np.ndarray:
        """float32 [n, ...] of views, float32 [n, H, W, 3] in 0..255, computed and not kept."""
        self.count(uses=len(views), computed=len(views))
        return self.rounded(self.forward.run(views))

    def count(self, uses: int = 0, computed: int = 0) -> None:
        """Counts activations, from any thread."""
        with self._counting:
            self.uses += uses
            self.computed += computed

    def keep(self, wanted: Sequence[tuple[Split, np.ndarray, np.ndarray]], uses: int, always: bool) -> None:
        """Decides whether to keep the activations that a phase is going to read, and if so computes what is missing.

        Args:
            wanted: splits, with rows int [n] and the seeds of their views, int32 [n]: each pair once, rows ascending.
            uses: how many the phase is going to read, all in all.
            always: keep them whatever it costs.
        """
        if self._store is None:
            return
        try:
            self._enter(self._store)
            missing = [self._missing(self._store, *these) for these in wanted]
            count = sum(map(len, missing))
            if count:
                decision = self._weigh(self._store, wanted, missing, uses)
                if decision.worth_it or not always:  # Else it would give reasons for what is not done.
                    self._console.say(f"  {decision.arithmetic}")
                if not (decision.worth_it or always):
                    return
                for (split, rows, seeds), lacking in zip(wanted, missing, strict=True):
                    if len(lacking):
                        self._fill(self._store, split, rows[lacking], seeds[lacking])
            self.seconds = self._store.speed(self._space) or 0.0
        except CacheError as error:
            self._end_store(error)
        else:
            self.kept = True

    def read(self, split: Split, rows: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """float32 [n, ...] from the store; what has gone from there, or is damaged, is computed again.

        May be called from several threads.

        Args:
            split: whose pictures.
            rows: int [n].
            seeds: int32 [n], of their views.
        """
        assert self.kept
        found: list[bytes | None] = [None] * len(rows)
        if (store := self._store) is not None:
            try:
                found = store.read(self._space, self._keys(split, rows, seeds))
            except CacheError as error:
                self._end_store(error)
        lost = np.array([row for row, value in enumerate(found) if value is None], int)
        if len(lost):
            order = lost[np.argsort(rows[lost], kind="stable")]
            for place, value in zip(order, self._recompute(split, rows[order], seeds[order]), strict=True):
                found[place] = value
        self.count(uses=len(rows))
        raw = np.frombuffer(b"".join(value for value in found if value is not None), self._dtype)
        return raw.reshape(len(rows), *self._shape).astype(np.float32)

    def _keys(self, split: Split, rows: np.ndarray, seeds: np.ndarray) -> list[Key]:
        names = {seed: self._views.key(seed) for seed in np.unique(seeds).tolist()}
        return [
            (bytes.fromhex(split.digests[row]), names[seed]) for row, seed in zip(rows, seeds.tolist(), strict=True)
        ]

    def _enter(self, store: Store) -> None:
        """Finds the engine: the one given, or chosen for these layers before, or else the fastest that agrees now.

        A space has a speed from when its engine was chosen on.
        """
        for engine in trunk.engines() if self._engine is None else (self._engine,):
            space = store.space(self._settings | {"engine": engine})
            if store.speed(space) is not None:
                self._engine, self._space = engine, space
                return
        self._engine = self.forward.engine
        self._space = store.space(self._settings | {"engine": self._engine})
        store.set_speed(self._space, self.forward.seconds)

    def _missing(self, store: Store, split: Split, rows: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Which of the pairs are not in the store: indices int [m]."""
        present: list[bool] = []
        for a in range(0, len(rows), _KEYS):
            present += store.present(self._space, self._keys(split, rows[a : a + _KEYS], seeds[a : a + _KEYS]))
        return np.flatnonzero(~np.array(present, bool))

    def _weigh(
        self, store: Store, wanted: Sequence[tuple[Split, np.ndarray, np.ndarray]], missing: list[np.ndarray], uses: int
    ) -> Keeping:
        """Decides by the room there is, then by the time that a few of those that are missing take.

        Those few are kept, and missing no longer. Without room, nothing is tried: it would push out what others need.
        """
        entries, lacking = sum(len(rows) for _, rows, _ in wanted), sum(map(len, missing))
        size = math.prod(self._shape) * np.dtype(self._dtype).itemsize
        if refusal := no_room(entries, size, store.room):
            return refusal
        at = next(place for place, indices in enumerate(missing) if len(indices))
        few, missing[at] = np.split(missing[at], [_TRIAL])
        split, rows, seeds = wanted[at]
        compute_seconds, store_seconds = self._try_out(store, split, rows[few], seeds[few])
        store.set_speed(self._space, compute_seconds)
        return keeping(entries, lacking, uses, size, store.room, compute_seconds, store_seconds)

    def _try_out(self, store: Store, split: Split, rows: np.ndarray, seeds: np.ndarray) -> tuple[float, float]:
        """Computes and keeps a few activations: seconds that augmenting and computing one takes, and storing it."""
        self.count(computed=len(rows))
        pictures, places = np.unique(rows, return_inverse=True)
        with closing(split.stream(pictures, len(pictures))) as batches:
            images = next(batches)[1][places]
        for _ in range(2):  # The first time, much is set up.
            started = time.perf_counter()
            values = self._bytes(self.forward.run(self._views.pixels(images, split.contents[rows], seeds)))
            computed = time.perf_counter()
        keys = self._keys(split, rows, seeds)
        store.write(self._space, list(zip(keys, values, strict=True)))
        store.read(self._space, keys)
        stored = time.perf_counter()
        return (computed - started) / len(rows), (stored - computed) / len(rows)

    def _fill(self, store: Store, split: Split, rows: np.ndarray, seeds: np.ndarray) -> None:
        """Computes and keeps activations of rows, ascending."""
        with (
            self._console.bar(f"  frozen layers, {split.name}", len(rows)) as advance,
            closing(self._entries(split, rows, seeds)) as chunks,
        ):
            for entries in chunks:
                store.write(self._space, entries)
                advance(len(entries))

    def _recompute(self, split: Split, rows: np.ndarray, seeds: np.ndarray) -> list[bytes]:
        """The values of rows, ascending, computed and put back."""
        values = []
        with closing(self._entries(split, rows, seeds)) as chunks:
            for entries in chunks:
                values += [value for _, value in entries]
                if (store := self._store) is not None and self.forward.engine == self._engine:
                    try:
                        store.write(self._space, entries)
                    except CacheError as error:
                        self._end_store(error)
        return values

    def _end_store(self, error: CacheError) -> None:
        """For the rest of the phase. Of several threads that meet an error, one says so."""
        with self._counting:
            store, self._store = self._store, None
        if store is not None:
            self._console.warn(f"{error} Activations are computed on the fly instead.")

    def _entries(
        self, split: Split, rows: np.ndarray, seeds: np.ndarray
    ) -> Generator[list[tuple[Key, bytes]], None, None]:
        """Computes activations of rows, int [n], ascending, and their keys, a chunk at a time.

        While the caller stores one chunk, the next is computed, the one after it augmented, and more are decoded.
        """
        pictures = np.unique(rows)
        contents = split.contents
        at_once = max(1, _CHUNK * len(pictures) // len(rows))

        def views(decoded: tuple[np.ndarray, np.ndarray]) -> tuple[slice, np.ndarray]:
            present, images = decoded
            chunk = slice(*np.searchsorted(rows, [present[0], present[-1] + 1]))
            mine = rows[chunk]
            return chunk, self._views.pixels(images[np.searchsorted(present, mine)], contents[mine], seeds[chunk])

        def entries(drawn: tuple[slice, np.ndarray]) -> list[tuple[Key, bytes]]:
            chunk, pixels = drawn
            self.count(computed=len(pixels))
            values = self._bytes(self.forward.run(pixels))
            return list(zip(self._keys(split, rows[chunk], seeds[chunk]), values, strict=True))

        with (
            closing(split.stream(pictures, at_once)) as decoded,
            ThreadPoolExecutor(2) as drawing,
            closing(in_order(drawing, views, decoded, window=3)) as drawn,
            ThreadPoolExecutor(1) as computing,
            closing(in_order(computing, entries, drawn, window=2)) as computed,
        ):
            yield from computed

    def _bytes(self, features: np.ndarray) -> list[bytes]:
        return [value.tobytes() for value in self.rounded(features).astype(self._dtype)]
