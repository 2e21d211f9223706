"""Language models, corpora, recordings."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q

from apps.artifacts.models import Artifact
from apps.core.hosts import this_host
from apps.core.records import Record
from apps.jobs.models import Job
from apps.jobs.states import ResultState as ResultState
from apps.projects.models import Project
from apps.registry.querysets import CorpusQuerySet, LanguageModelQuerySet, RecordingQuerySet
from microscope.params.precisions import QUANTISED

# Smallest share of tokens a corpus of a mixture can have, relative to another of weight 1.
MIN_WEIGHT = 1e-4


class JobResult(Record):
    """A row that a job fills in. Why it failed is told by the job."""

    state = models.CharField(max_length=8, choices=ResultState.choices, default=ResultState.PENDING)
    job = models.ForeignKey(Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        abstract = True


class LanguageModel(JobResult):
    """A model by reference: where it is, what is known about it, whether it should be in memory.

    ``facts`` is filled by looking at its configuration: family, sizes, bytes needed per precision. A
    model whose weights are rounded (``int8``, ``nf4``) is another model than the whole one: its facts
    say what rounding does to its logits, and its fingerprint is its own. ``host`` is the machine that looked whether
    its folder is there.
    """

    class Source(models.TextChoices):
        """Where the weights are."""

        HUB = "hub"
        FOLDER = "folder"
        GGUF = "gguf"

    class Dtype(models.TextChoices):
        """Precision of the weights when loaded."""

        AUTO = "auto"
        FLOAT32 = "float32"
        BFLOAT16 = "bfloat16"
        FLOAT16 = "float16"
        INT8 = "int8"
        NF4 = "nf4"

    EDITED = ("name",)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="models")
    name = models.CharField(max_length=120)
    source = models.CharField(max_length=8, choices=Source.choices)
    reference = models.CharField(max_length=500)
    revision = models.CharField(max_length=120, blank=True)
    dtype = models.CharField(max_length=10, choices=Dtype.choices, default=Dtype.AUTO)
    facts = models.JSONField(default=dict)
    fingerprint = models.CharField(max_length=80, blank=True)
    wanted_loaded = models.BooleanField(default=False)
    load_asked_at = models.DateTimeField(null=True, blank=True)
    host = models.CharField(max_length=120, blank=True, default=this_host)

    objects = LanguageModelQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="model_name_unique"),
            models.CheckConstraint(
                condition=Q(source__in=("hub", "folder", "gguf")), name="model_source_known"
            ),
            models.CheckConstraint(condition=Q(state__in=ResultState.values), name="model_state_known"),
        )
        indexes = (
            models.Index(fields=("wanted_loaded",), name="model_wanted", condition=Q(wanted_loaded=True)),
        )

    def __str__(self) -> str:
        return self.name

    def locate(self) -> str:
        """The reference as the engine takes it: a relative path is looked for below the server's model folders."""
        if self.source == self.Source.HUB or Path(self.reference).is_absolute():
            return self.reference
        here = [root / self.reference for root in settings.WORKBENCH_MODEL_DIRS]
        return str(next((path for path in here if path.exists()), self.reference))

    @property
    def is_quantised(self) -> bool:
        """Whether its weights are rounded to 8 or 4 bits."""
        return self.dtype in QUANTISED

    @property
    def n_layers(self) -> int | None:
        """Number of blocks, once known."""
        value = self.facts.get("n_layers")
        return int(value) if value is not None else None


class Corpus(JobResult):
    """Text to record activations on: built-in, a dataset of the Hub, or uploaded, which a job has checked."""

    class Kind(models.TextChoices):
        """Where the text is."""

        BUILTIN = "builtin"
        UPLOAD = "upload"
        HUB_DATASET = "hub_dataset"

    EDITED = ("name",)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="corpora")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=12, choices=Kind.choices)
    reference = models.CharField(max_length=500, blank=True)
    text_field = models.CharField(max_length=80, default="text")
    bytes = models.BigIntegerField(null=True, blank=True)
    documents = models.BigIntegerField(null=True, blank=True)
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="corpus"
    )
    host = models.CharField(max_length=120, blank=True, default=this_host)

    objects = CorpusQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        verbose_name_plural = "corpora"
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="corpus_name_unique"),
            models.CheckConstraint(
                condition=Q(kind="upload") & (~Q(state="ready") | Q(artifact__isnull=False))
                | (Q(kind__in=("builtin", "hub_dataset"), artifact__isnull=True) & ~Q(reference="")),
                name="corpus_has_its_text",
            ),
            models.CheckConstraint(condition=Q(state__in=ResultState.values), name="corpus_state_known"),
        )

    def __str__(self) -> str:
        return self.name


class Recording(JobResult):
    """Activations of a model on a corpus, or on several mixed: then ``parts`` has all, ``corpus`` the first.

    One that was imported has no corpus here; what it was recorded on is told in its summary.
    """

    EDITED = ("name",)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="recordings")
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="recordings")
    corpus = models.ForeignKey(
        Corpus, null=True, blank=True, on_delete=models.PROTECT, related_name="recordings"
    )
    name = models.CharField(max_length=120)
    layers = models.JSONField(default=list)
    sites = models.JSONField(default=list)
    tokens = models.BigIntegerField()
    summary = models.JSONField(default=dict)
    fingerprint = models.CharField(max_length=80, blank=True)
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="recording"
    )

    objects = RecordingQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="recording_name_unique"),
            models.CheckConstraint(
                condition=~Q(state="ready") | Q(artifact__isnull=False), name="recording_ready_has_files"
            ),
        )

    def __str__(self) -> str:
        return self.name

    def texts(self) -> list[tuple[Corpus, float]]:
        """Its corpora with their weights, in the order they were given."""
        parts = [(part.corpus, part.weight) for part in self.parts.all()]
        return parts or ([(self.corpus, 1.0)] if self.corpus is not None else [])


class RecordingPart(Record):
    """One of the corpora that a recording mixes, by its share of tokens."""

    recording = models.ForeignKey(Recording, on_delete=models.CASCADE, related_name="parts")
    corpus = models.ForeignKey(Corpus, on_delete=models.PROTECT, related_name="parts")
    weight = models.FloatField(validators=[MinValueValidator(MIN_WEIGHT)])
    position = models.PositiveSmallIntegerField()

    class Meta:
        ordering = ("position",)
        constraints = (
            models.UniqueConstraint(fields=("recording", "corpus"), name="recording_part_once"),
            models.UniqueConstraint(fields=("recording", "position"), name="recording_part_place"),
            models.CheckConstraint(condition=Q(weight__gt=0), name="recording_part_weight"),
        )

    def __str__(self) -> str:
        return f"{self.weight:g} × {self.corpus}"
