"""The configuration of a run: what may be written, checked before any data is read. `config_file` reads it.

Every field says what it means and in which unit; rules across fields are validators of the model they belong to.
"""

from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from pipeline.backbones import BACKBONES
from pipeline.errors import did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Strict(BaseModel):
    """Unknown keys, wrong types, infinities and NaN are refused; a built config never changes."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# ---------------------------------------------------------------------------------------------------------------- data


class RandAugment(Strict):
    """RandAugment (Cubuk et al., 2020), Keras's layer."""

    operations: Annotated[int, Field(ge=1)] = 2
    """How many random operations are applied to each picture."""
    magnitude: Fraction = 0.5
    """Strength of those operations that have one, 0 to 1, in Keras's scale."""


class Augment(Strict):
    """Random changes to training pictures. Evaluation and serving never see them."""

    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    """Mirror each picture with probability one half per direction."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Random resized crop: the smallest share of a picture's area that is kept, e.g. 0.5; sides between 3:4 and 4:3."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotate by up to this many degrees either way."""
    color: Fraction = 0.0
    """Strength of random brightness, contrast, saturation and (a tenth of it) hue."""
    rand_augment: RandAugment | None = None
    """RandAugment's random operations."""
    mixup: Annotated[float, Field(gt=0)] | None = None
    """Blend pairs of pictures and labels; the Beta distribution's parameter, e.g. 0.2."""
    cutmix: Annotated[float, Field(gt=0)] | None = None
    """Paste a patch of another picture, labels in proportion; the Beta distribution's parameter, e.g. 1.0."""

    @property
    def of_each(self) -> dict[str, Any]:
        """What is asked for that changes a picture by itself: all but mixup and cutmix."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"mixup", "cutmix"})

    @model_validator(mode="after")
    def _one_mixture(self) -> Self:
        if self.mixup is not None and self.cutmix is not None:
            raise ValueError("mixup and cutmix both mix each batch: set one of them")
        return self


class Data(Strict):
    """Which pictures, how they become pixels, and how they are split."""

    source: Literal["folder", "tfds", "digits"]
    """folder: pictures on disk; tfds: a TensorFlow Datasets name; digits: scikit-learn's 8x8 handwritten digits."""
    path: Text | None = None
    """folder: a folder of class folders, or of train/ val/ test/ with class folders in each, or a CSV file with the
    columns path, label and optionally split. Relative paths start where graft is run."""
    name: Text | None = None
    """tfds: the dataset's name, e.g. tf_flowers, or name/config:version."""
    data_dir: Text | None = None
    """tfds: where prepared datasets lie. Default: TFDS's own (~/tensorflow_datasets)."""
    classes: Annotated[list[Text], Field(min_length=2)] | None = None
    """Use these classes only, in this order. Default: all, sorted by name."""
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Side of the square picture the network sees, in pixels. Default: the network's own."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Share of the resized picture's shorter side that the centre crop keeps. 0.875 is "resize to 256, crop 224"."""
    max_megapixels: Annotated[float, Field(gt=0)] = 50.0
    """Pictures with more pixels than this, in millions, are quarantined without being decoded."""
    max_bad_fraction: Fraction = 0.1
    """Stop when more than this share of the files had to be quarantined."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the pictures, chosen by a hash of their content, that is held out to tune on."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the pictures, chosen by a hash of their content, that is held out for the final figures. Unused where
    the data comes with a test split of its own."""
    mean_subtraction: Literal["backbone", "channel", "image", "none"] = "backbone"
    """What is subtracted from the pixels: the network's own means, one mean per channel of the training split (as
    VGG), the training split's mean image (as AlexNet), or nothing."""
    augment: Augment = Augment()
    """Random changes to training pictures."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Each picture has this many views: the plain one, and views - 1 random augmentations that follow from the seed.
    Each epoch draws one of them, and what frozen layers make of it is computed once and kept. Default: with augment,
    every epoch augments anew, which leaves nothing to keep; without it, the plain picture."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs the same in the loss, however many pictures it has."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Pictures per training step, over all devices together."""

    @model_validator(mode="after")
    def _keys_of_the_source(self) -> Self:
        needed = {"folder": "path", "tfds": "name", "digits": None}[self.source]
        if needed and getattr(self, needed) is None:
            raise ValueError(f"source {self.source} needs data.{needed}")
        for key, owner in (("path", "folder"), ("name", "tfds"), ("data_dir", "tfds")):
            if getattr(self, key) is not None and owner != self.source:
                raise ValueError(
                    f"data.{key} belongs to source {owner} and has no effect with source {self.source}: leave it out"
                )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction together leave nothing to train on: lower them")
        if (self.views or 1) > 1 and not self.augment.of_each:
            raise ValueError(
                "views has no effect without data.augment's flip, crop_scale, rotation, color or rand_augment: set one "
                "of them"
            )
        if self.views == 1 and self.augment.of_each:
            raise ValueError(
                "views: 1 is the plain picture alone, so data.augment would have no effect: set more views"
            )
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError("data.classes names a class twice: name it once")
        return self


# -------------------------------------------------------------------------------------------------------------- network


class BackboneConfig(Strict):
    """The network below the head."""

    name: Annotated[str, Field(json_schema_extra={"enum": [*BACKBONES]})]
    """A name from `graft backbones`."""
    weights: str = "imagenet"
    """imagenet; none (random); a .weights.h5 or .keras file; or run:ID, an earlier run's MLflow id or folder name, or
    run:NAME, the latest finished run of that name."""
    options: dict[str, bool | int | float | str] = {}
    """Handed to the network's builder, e.g. {alpha: 0.25} for MobileNet."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in BACKBONES:
            allowed = f"Allowed: {', '.join(BACKBONES)}."
            raise ValueError(f"no such backbone. {did_you_mean(name, BACKBONES, allowed)}")
        return name

    @field_validator("weights")
    @classmethod
    def _one_of_four(cls, weights: str) -> str:
        run = weights.startswith("run:") and weights != "run:"
        if weights not in ("imagenet", "none") and not run and not weights.endswith((".weights.h5", ".keras")):
            meant = did_you_mean(weights, ("imagenet", "none"))
            allowed = "imagenet, none, run:ID, run:NAME or a file that ends in .weights.h5 or .keras"
            raise ValueError(f"must be {allowed}. {meant}")
        return weights

    @model_validator(mode="after")
    def _options_and_weights(self) -> Self:
        backbone = BACKBONES[self.name]
        if unknown := sorted(set(self.options) - set(backbone.options)):
            allowed = f"Its options: {', '.join(backbone.options) or 'none'}."
            raise ValueError(
                f"{self.name} has no option {unknown[0]!r}. {did_you_mean(unknown[0], backbone.options, allowed)}"
            )
        if self.weights == "imagenet" and not backbone.imagenet:
            raise ValueError(f"there are no ImageNet weights for {self.name}; use weights: none, a file or run:NAME")
        return self


class Head(Strict):
    """The new layers on top of the backbone, ending in one logit per class."""

    pooling: Literal["avg", "max", "flatten"] = "avg"
    """How feature maps become a vector."""
    hidden_units: list[Annotated[int, Field(ge=1)]] = []
    """Widths of dense layers between the features and the logits, e.g. [256]."""
    activation: Literal["relu", "leaky_relu", "elu", "tanh", "sigmoid"] = "relu"
    """After each hidden layer. leaky_relu has slope 0.01."""
    initializer: Literal["glorot_normal", "glorot_uniform", "he_normal", "he_uniform"] = "glorot_uniform"
    """Of every dense kernel in the head."""
    batch_norm: bool = False
    """Batch normalisation between each hidden layer and its activation."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of each dense layer dropped in training."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty on the dense kernels, added to the loss."""

    @model_validator(mode="after")
    def _hidden_layers_are_there(self) -> Self:
        for key in ("activation", "batch_norm"):
            if not self.hidden_units and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect without hidden_units: set them, e.g. [256]")
        return self


# -------------------------------------------------------------------------------------------------------------- phases


class Blocks(Strict):
    blocks: Annotated[int, Field(ge=1)]
    """Unfreeze the head and this many of the backbone's topmost blocks."""


class From(Strict):
    from_: Annotated[str, Field(alias="from")]
    """Unfreeze the head, this layer of the backbone and all above it."""


class Share(Strict):
    fraction: Annotated[float, Field(gt=0, le=1)]
    """Unfreeze the head and this share of the backbone's layers that have weights, from the top."""


def _kind_of_unfreeze(value: Any) -> str | None:
    if isinstance(value, str | None):
        return "word" if value in ("head", "all") else None
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True)
    keys = set(value) if isinstance(value, dict) else set()
    return {"blocks": "blocks", "from": "from", "fraction": "fraction"}.get(keys.pop()) if len(keys) == 1 else None


Unfreeze = Annotated[
    Annotated[Literal["head", "all"], Tag("word")]
    | Annotated[Blocks, Tag("blocks")]
    | Annotated[From, Tag("from")]
    | Annotated[Share, Tag("fraction")],
    Discriminator(
        _kind_of_unfreeze,
        custom_error_type="unfreeze",
        custom_error_message="allowed: head, all, {blocks: 2}, {from: LAYER} or {fraction: 0.3}",
    ),
]


class SGD(Strict):
    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """v <- momentum v - learning_rate g."""
    nesterov: bool = False
    """Take the gradient ahead, at theta + momentum v."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov has no effect with momentum 0: set momentum, e.g. 0.9")
        return self


class Adam(Strict):
    name: Literal["adam"] = "adam"


class AdamW(Strict):
    name: Literal["adamw"] = "adamw"


class RMSprop(Strict):
    name: Literal["rmsprop"] = "rmsprop"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """As in sgd, on the scaled gradient."""


class Constant(Strict):
    name: Literal["constant"] = "constant"


class Cosine(Strict):
    name: Literal["cosine"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs in which the learning rate rises linearly from 0, before it falls to 0 along a cosine."""


class Step(Strict):
    name: Literal["step"] = "step"
    every_epochs: Annotated[int, Field(ge=1)]
    """Epochs between two falls of the learning rate."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The learning rate is multiplied by this at each fall."""


class Plateau(Strict):
    name: Literal["plateau"] = "plateau"
    patience: Annotated[int, Field(ge=1)] = 5
    """Epochs without a better validation accuracy before the learning rate falls."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The learning rate is multiplied by this at each fall: 0.1 is AlexNet's "divide by 10"."""


class EarlyStopping(Strict):
    patience: Annotated[int, Field(ge=1)] = 5
    """Epochs without a lower validation loss before the phase ends; the best epoch's weights are kept."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A fall in validation loss smaller than this does not count as better."""


SHORT = {"optimizer": "name", "schedule": "name", "cache": "use"}
"""Sections that may be written as one word, and the key that it stands for: `adam` is `{name: adam}`."""


def in_full(section: str, value: Any) -> Any:
    """A section as it would be written in full."""
    return {SHORT[section]: value} if isinstance(value, str) else value


_Optimizer = Annotated[SGD | Adam | AdamW | RMSprop, Field(discriminator="name")]
_Schedule = Annotated[Constant | Cosine | Step | Plateau, Field(discriminator="name")]
# The second type is what the JSON Schema allows. step is not among the words: it needs every_epochs.
Optimizer = Annotated[
    _Optimizer,
    BeforeValidator(
        partial(in_full, "optimizer"), json_schema_input_type=Literal["sgd", "adam", "adamw", "rmsprop"] | _Optimizer
    ),
]
Schedule = Annotated[
    _Schedule,
    BeforeValidator(
        partial(in_full, "schedule"), json_schema_input_type=Literal["constant", "cosine", "plateau"] | _Schedule
    ),
]


class Phase(Strict):
    """One stretch of training with one set of unfrozen layers."""

    epochs: Annotated[int, Field(ge=1)]
    """Passes over the training split."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The optimizer's learning rate, before the schedule and layer_decay."""
    unfreeze: Unfreeze = "head"
    """What trains: head, all, {blocks: 2}, {from: LAYER} or {fraction: 0.3}."""
    optimizer: Optimizer = Adam()
    """sgd, adam, adamw or rmsprop; or {name: sgd, momentum: 0.9, nesterov: true}."""
    schedule: Schedule = Constant()
    """constant, cosine, {name: step, every_epochs: 10} or plateau."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Shrinks kernels: under sgd as part of the gradient (L2), elsewhere decoupled, by learning_rate times this a step.
    Biases and normalisation are left alone."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label's weight spread over all classes."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Scale the gradient down to this global norm where it is larger."""
    early_stopping: EarlyStopping | None = None
    """End the phase when validation loss stops falling."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Average the weights with this momentum per step, e.g. 0.99; the average is validated and kept."""
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Multiply the learning rate by this once more for each block below the head."""
    backbone_mode: Literal["inference", "training"] = "inference"
    """inference: the backbone's batch normalisation uses its stored statistics and its dropout is off, as fine-tuning
    needs. training: in the unfrozen layers both act as they do when a network is trained from scratch."""

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if isinstance(self.schedule, Cosine) and self.schedule.warmup_epochs >= self.epochs:
            raise ValueError("schedule.warmup_epochs must be smaller than epochs")
        if isinstance(self.schedule, Step) and self.schedule.every_epochs >= self.epochs:
            raise ValueError("schedule.every_epochs must be smaller than epochs, or the learning rate never falls")
        if isinstance(self.schedule, Plateau) and self.schedule.patience >= self.epochs:
            raise ValueError("schedule.patience must be smaller than epochs, or the learning rate never falls")
        if self.unfreeze == "head":
            if self.layer_decay is not None:
                raise ValueError(
                    "layer_decay has no effect while unfreeze is head: no layers are below it; leave it out"
                )
            if self.backbone_mode == "training":
                raise ValueError(
                    "backbone_mode: training has no effect while unfreeze is head: the backbone is frozen; leave it out"
                )
        if isinstance(self.optimizer, AdamW) and self.weight_decay == 0:
            raise ValueError("optimizer adamw without weight_decay is adam: set weight_decay, e.g. 0.01, or use adam")
        return self

    @property
    def trains(self) -> str:
        """What `unfreeze` says, as a config has it: `all`, `blocks: 2`."""
        match self.unfreeze:
            case Blocks(blocks=count):
                return f"blocks: {count}"
            case From(from_=name):
                return f"from: {name}"
            case Share(fraction=share):
                return f"fraction: {share:g}"
            case word:
                return word


# --------------------------------------------------------------------------------------------------- cache and outputs


_CacheWord = Literal["auto", "always", "off"]


class Cache(Strict):
    """What frozen layers make of each picture is kept on disk, for later epochs and later runs."""

    use: _CacheWord = "auto"
    """auto: each phase reads activations from the store, or computes them on the fly where that is quicker than writing
    and reading them, or the store would not hold them. always: wherever a phase can. off: never; nothing is read or
    written."""
    dir: Text | None = None
    """Where the store is. Default: activations in output_dir. Runs may share it, at the same time too. It needs a
    file system of this machine's own."""
    max_bytes: Annotated[ByteSize, Field(ge=1_000_000)] = ByteSize(20_000_000_000)
    """How large the store may grow, in bytes or as 20GB. The least recently used goes first."""
    dtype: Literal["float16", "float32"] = "float16"
    """How activations are kept. float16 takes half the room, rounds to three digits, and ends at 65504."""


class Checkpoint(Strict):
    every: Annotated[int, Field(ge=1)] = 200
    """Training steps between two checkpoints, counted through all epochs and phases. A run that was killed repeats this
    many steps at most."""


class Export(Strict):
    dir: Text = "export"
    """The model is published as <dir>/<name>/<version>/, the layout TensorFlow Serving reads."""


class Tracking(Strict):
    uri: Text | None = None
    """MLflow's tracking URI. Default: MLFLOW_TRACKING_URI, else a SQLite file in output_dir."""
    experiment: Text | None = None
    """MLflow experiment. Default: the run's name."""


# ---------------------------------------------------------------------------------------------------------- retraining

Age = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[dh]$")]
"""Days or hours, e.g. 30d or 12h."""


def seconds(age: str) -> int:
    """An `Age` in seconds."""
    return int(age[:-1]) * {"d": 86_400, "h": 3_600}[age[-1]]


class When(Strict):
    """What makes `graft retrain` train. Any one of them is enough."""

    changed: bool = True
    """A picture was added, removed or relabelled since the champion was trained."""
    new_images: Annotated[int, Field(ge=1)] | None = None
    """At least this many pictures were added. Set changed: false beside it."""
    older_than: Age | None = None
    """The champion was made so long ago, e.g. 30d or 12h."""
    drift: Text | None = None
    """A folder of samples that the endpoint writes (graft serve --samples): what it is asked has drifted from what the
    champion was trained on, as graft watch finds."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.changed or self.new_images or self.older_than or self.drift):
            raise ValueError("nothing would ever make graft retrain train: set changed: true or another key")
        if self.changed and self.new_images:
            raise ValueError("new_images has no effect beside changed: true, which any new picture fulfils: drop one")
        return self


class SmokeTest(Strict):
    """After a promotion the endpoint is asked for known pictures. A wrong answer, or none, undoes the promotion."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+$")]
    """Where the model is served, e.g. http://127.0.0.1:8501."""
    token_file: Text | None = None
    """Holds the token that the endpoint asks for."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long the endpoint may take until it answers with the new version."""


class Retention(Strict):
    """What is kept. The champion, its predecessor and what they need are never removed."""

    versions: Annotated[int, Field(ge=2)] = 10
    """Registered and published versions, the newest ones."""
    runs: Annotated[int, Field(ge=2)] = 50
    """Runs of the name, the newest ones: their folders, and they themselves in MLflow."""
    activations: Age | None = None
    """Activations that were not used for so long are removed from the store, e.g. 30d. Default: only the store's
    max_bytes limits it."""


class Retrain(Strict):
    """What `graft retrain` does before and after the training."""

    start: Literal["backbone", "champion"] = "backbone"
    """What a challenger starts from. backbone: from backbone.weights, e.g. ImageNet's, whose activations are kept from
    earlier runs. champion: from the champion's backbone and, where the classes are the same, its head."""
    when: When = When()
    """What makes it train."""
    near_duplicates: Literal["together", "ignore"] = "together"
    """together: pictures that show the same (copies re-encoded, resized or cropped a little) stay in one split."""
    smoke_test: SmokeTest | None = None
    """Ask the endpoint after a promotion."""
    retention: Retention = Retention()
    """What is kept."""


class Gate(Strict):
    """What a challenger must show on the frozen test set. Without a champion only min_accuracy and max_ece count."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The lower end of the 95 % interval of the gain in accuracy over the champion must be above this. 0: better than
    it; -0.01: not worse by more than one point (non-inferiority)."""
    max_class_drop: Fraction = 0.05
    """No class may lose more of its accuracy than this, beyond what chance explains."""
    max_ece_increase: Fraction = 0.05
    """The expected calibration error may not rise by more than this, beyond what chance explains."""
    max_latency_ratio: Annotated[float, Field(ge=1)] | None = 2.0
    """The challenger's median time for one picture may be this many times the champion's. null: any."""
    min_accuracy: Fraction | None = None
    """Without a champion: the least accuracy. Default: the lower end of its 95 % interval must be above what always
    answering the commonest class would reach."""
    max_ece: Fraction | None = None
    """Without a champion: the largest expected calibration error. Default: any."""


# ----------------------------------------------------------------------------------------------------------------- run


def default_phases() -> list[Phase]:
    """Among the best, within what 244 photographs of ants and bees can tell: the figures are in docs/phases.md."""
    return [
        Phase(epochs=10, learning_rate=5e-3, unfreeze="head", schedule=Cosine()),
        Phase(epochs=8, learning_rate=1e-4, unfreeze=Share(fraction=0.3), schedule=Cosine()),
    ]


class RunConfig(Strict):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
    """Names the run's folder, the exported model and the registered model: up to 100 letters, digits, dots, dashes and
    underscores."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides every random draw. It does not move pictures between splits."""
    data: Data
    """Which pictures."""
    backbone: BackboneConfig
    """Which network."""
    head: Head = Head()
    """The layers on top."""
    phases: Annotated[list[Phase], Field(min_length=1)] = Field(default_factory=default_phases)
    """Stretches of training, in order. Default: the head at 5e-3, then the top 0.3 of the layers at 1e-4."""
    cache: Annotated[
        Cache,
        BeforeValidator(partial(in_full, "cache"), json_schema_input_type=Literal["auto", "always", "off"] | Cache),
    ] = Cache()
    """The store of activations. `off` is short for {use: off}."""
    checkpoint: Checkpoint = Checkpoint()
    """How much of a run that was killed is repeated."""
    export: Export = Export()
    """Where the model goes."""
    tracking: Tracking = Tracking()
    """Where MLflow is."""
    retrain: Retrain = Retrain()
    """What graft retrain does around a run."""
    gate: Gate = Gate()
    """What a challenger must show before graft retrain promotes it."""
    output_dir: Text = "runs"
    """Each run gets a folder <output_dir>/<name>/<time>/ with its reports, weights and records."""

    @property
    def experiment(self) -> str:
        """The MLflow experiment."""
        return self.tracking.experiment or self.name

    @property
    def cache_dir(self) -> str:
        """Where the store of activations is."""
        return self.cache.dir or f"{self.output_dir}/activations"

    @property
    def image_size(self) -> int:
        """Side of the picture the network sees, in pixels."""
        return self.data.image_size or BACKBONES[self.backbone.name].default_size

    @model_validator(mode="after")
    def _network_and_data_agree(self) -> Self:
        backbone = BACKBONES[self.backbone.name]
        if self.image_size < backbone.min_size:
            raise ValueError(f"data.image_size: {backbone.name} needs at least {backbone.min_size} pixels")
        if backbone.fixed_size and self.image_size != backbone.default_size:
            raise ValueError(f"data.image_size: {backbone.name} is defined for {backbone.default_size} pixels only")
        if backbone.contract == "in-model" and self.data.mean_subtraction != "backbone":
            raise ValueError(
                f"data.mean_subtraction: {backbone.name} normalises inside the network, so only 'backbone' is allowed"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """The config as dotted keys, lists by index, as MLflow's parameters are named."""

        def walk(prefix: str, value: Any) -> dict[str, Any]:
            if isinstance(value, dict) and value:
                items: Any = value.items()
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                items = enumerate(value)
            else:
                return {prefix: value}
            return {
                k: v for key, part in items for k, v in walk(f"{prefix}.{key}" if prefix else str(key), part).items()
            }

        return walk("", self.model_dump(mode="json", by_alias=True))
