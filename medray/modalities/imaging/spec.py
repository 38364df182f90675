"""ImagingSpec: what a run file's [modality] says of images and what a bundle keeps. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medray.archive.choice import SUBJECT
from medray.archive.eligibility import Select
from medray.modalities.imaging.formats.dicom.keywords import CODED, check_select
from medray.modalities.patterns import one_group
from medray.modalities.spec import Spec

Axis = Literal["depth", "height", "width"]
Positive = Annotated[float, Field(gt=0)]
_PAIRS = {letter: pair for pair in ("LR", "AP", "IS") for letter in pair}


KINDS = ("Modality", "SOPClassUID", "ImageType[3]", "BodyPartExamined")
RANGED = (
    "slices", "rows", "columns", *(f"{name}[{axis}]" for name in ("spacing_mm", "extent_mm") for axis in (1, 2, 3)),
    "tilt_degrees", "largest_hole_mm",
)  # fmt: skip
STUDY = "study"


class AugmentSpec(BaseModel):
    """Random changes of training images, drawn anew for every sample and epoch; all off by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: tuple[Axis, ...] = ()
    """Axes mirrored with probability 1/2 each. Mirroring the width swaps left and right: choose it on purpose."""
    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    """Uniform in ±this, in the plane of height and width (for volumes: around the depth axis)."""
    shift: float = Field(default=0.0, ge=0, le=1)
    """Uniform in ±this fraction of the size, along each axis."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Zoom factor uniform in 1 ± this."""
    brightness: float = Field(default=0.0, ge=0)
    """Added offset, uniform in ±this, in units of the model's input (standard deviations under zscore)."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Factor uniform in 1 ± this, around each image's own mean."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of added Gaussian noise, in units of the model's input."""


class ImagingSpec(Spec):
    """How images become model inputs.

    read     decode → real-world values → channels → resample or resize → `dtype` (medicalnet: window → normalise)
    encode   window or scale → zscore (→ augmentation, in training)
    """

    kind: Literal["imaging"] = "imaging"  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen
    """The modality: images and volumes."""
    site: ClassVar[frozenset[str]] = frozenset({"ignore", "label_from", "subject_pattern"})
    learnt: ClassVar[tuple[str, ...]] = (*KINDS, "orientation")
    told_apart: ClassVar[tuple[str, ...] | None] = KINDS
    where_stated: ClassVar[frozenset[str]] = frozenset({"BodyPartExamined", "orientation"})
    ranged: ClassVar[tuple[str, ...]] = RANGED
    units: ClassVar[tuple[str, ...]] = (SUBJECT, STUDY)
    coded: ClassVar[frozenset[str]] = CODED

    size: tuple[Annotated[int, Field(gt=0)], ...]
    """Height, width: every image is an entry. Depth, height, width: every DICOM series, NIfTI file or 3D array is."""
    channels: Annotated[int, Field(ge=1)] = 1
    """1: colour becomes luma (ITU-R BT.601); 3: grey is repeated; any number: of the volumes that volumes = "channels" takes."""
    frames: Literal["refuse", "each", "middle"] = "refuse"
    """In 2D, what becomes of a file with several frames, or a mosaic of several slices: `refuse`: a failed row
    (`unsupported`); `each`: an entry for every frame, `SOPUID#frame=0007`; `middle`: the one in the middle (of an even number
    the later of both), which stands for the file."""
    volumes: Literal["refuse", "each", "first", "channels"] = "refuse"
    """In 3D, what becomes of a series of several volumes (time points, echoes, b-values, orientations …): `refuse`: a failed
    row that says by what they differ; `each`: an entry for every volume, such as `SERIESUID#echo=2,t=0003`; `first`: the
    first alone, by echo, time, b-value, then what else differs; `channels`: all of one grid, as channels of one entry."""
    gaps: Literal["fail", "keep", "resample"] = "fail"
    """Without spacing_mm, what becomes of a volume with uneven gaps or missing slices: `fail`: a failed row; `keep`: slices
    are stacked as if they were even; `resample`: to an even grid at the median gap, by their true positions, between slices
    of up to max_gap_mm. How uneven a volume is stands in its facts (residual_mm, largest_hole_mm, flags)."""
    spacing_mm: tuple[Positive, ...] | None = None
    """Voxel size in the order of `size`: resample to it by the true positions, then crop or pad the centre to `size`.
    Without it every image is resized to `size`, whatever its physical extent."""
    max_gap_mm: Positive | None = None
    """A volume with a wider gap between two slices is refused. Where it is not given, spacing_mm bridges gaps of up to 1.5
    times the median gap (of slices of that thickness; a single gap: of the distance or thickness that they state)."""
    resize: Literal["stretch", "pad", "nearest"] = "stretch"
    """Without spacing_mm: stretch each axis to `size`, or keep the proportions and pad with the background; nearest:
    stretch, each voxel the nearest one of the image, as MedicalNet was trained with (its size: [56, 448, 448])."""
    background: float | Literal["minimum"] = "minimum"
    """Value of padded pixels, in stored units (HU for CT); `minimum`: the least value of the image itself."""
    dtype: Literal["uint8", "int16", "float32"] = "float32"
    """Type of a sample's pixels in shards. uint8 for 8-bit sources or with a window (applied before storing), int16 for
    CT in HU (values are rounded to whole units). A value outside the range fails the entry: nothing wraps around."""
    window: tuple[float, Positive] | None = None
    """Centre and width in stored units (HU for CT), mapped to 0..1 and clipped (DICOM PS3.3 C.11.2.1.3.2)."""
    scale: Literal["auto", "none"] = "auto"
    """auto: uint8 samples are divided by 255. A window scales by itself."""
    normalise: Literal["zscore", "medicalnet", "none"] = "zscore"
    """zscore: subtract `mean` and divide by `std` of the training split, per channel, after window and scale. medicalnet:
    each image by itself, after the window: mean and deviation of its voxels above 0, and noise of N(0, 1), seeded by the
    image, where it is exactly 0. For CT give a window: of bare HU, what is above 0 is what is denser than water."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, for zscore. None: fitted on the training split; numbers that a run file gives are used as they are."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation of each channel, given or fitted as `mean` is."""
    augment: AugmentSpec = AugmentSpec()
    """Random changes of training images."""

    ignore: tuple[str, ...] = ("DICOMDIR", ".*", "Thumbs.db", "desktop.ini")
    """Globs of files and folders that are no data; with a / they are matched against the whole relative path."""
    label_from: Literal["auto", "folder", "none"] = "auto"
    """auto: labels inside .npz and idx archives, and class folders of pictures (root/[split/]class/…/x.png);
    folder: class folders for every format; none: no labels from the archive."""
    subject_pattern: str | None = None
    """Regular expression with one group, searched in the relative path: the subject. Wins over DICOM PatientID."""

    orientation: str = "stored"
    """Where the axes of a volume lead, width first: RAS is W to the right, H to the front, D to the head of the patient; all 48
    such codes. Axes are swapped and mirrored to the closest ones; `size` and `spacing_mm` are of the axes after that.
    stored: DICOM as acquired (slices along their normal), NIfTI as LPS, which is what an axial DICOM series is."""
    grid: Literal["volume", "patient"] = "volume"
    """Where spacing_mm puts the new voxels: along the volume's own axes, or exactly along the patient's, so that an oblique
    volume is turned upright; the latter needs an orientation."""
    pet: Literal["stored", "suv_bw", "suv_lbm_james", "suv_lbm_janma"] = "stored"
    """DICOM images of PET as standardized uptake values in g/ml: suv_bw by body weight, suv_lbm_james and suv_lbm_janma by lean body
    mass of James (128 for men) and of Janmahasatian; one whose header does not allow it fails (`no_quantity`). Other
    modalities stay as they are; formats that state none, such as NIfTI, fail."""
    real_world_unit: str | None = None
    """Unit (UCUM code, such as mm2/s) of values: by each image's own real world value map to it, instead of its rescale. An
    image without such a map fails (`no_quantity`), as does every format but DICOM."""
    dose: Literal["apart", "gray", "gray_effective"] = "apart"
    """In 3D, doses of radiotherapy (RT Dose): apart: no images (`dose`); gray: volumes in Gy, of physical doses; gray_effective:
    in Gy, of doses corrected for biological effect. A dose of another unit or type fails (`no_quantity`)."""

    @field_validator("size")
    @classmethod
    def _two_or_three_axes(cls, size: tuple[int, ...]) -> tuple[int, ...]:
        if len(size) not in (2, 3):
            raise ValueError(f"size must be [height, width] or [depth, height, width], found {len(size)} numbers")
        return size

    @field_validator("select")
    @classmethod
    def _known_facts(cls, select: Select) -> Select:
        check_select(select)
        return select

    @model_validator(mode="after")
    def _all_facts_are_known(self) -> ImagingSpec:
        check_select(self.ruled)
        return self

    @field_validator("orientation")
    @classmethod
    def _three_letters(cls, code: str) -> str:
        if code != "stored" and (len(code) != 3 or {"LR", "AP", "IS"} != {_PAIRS.get(letter) for letter in code}):
            raise ValueError(
                f"orientation is 'stored', or one of L R, one of A P and one of I S, as in RAS; found {code!r}"
            )
        return code

    @field_validator("subject_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        return None if pattern is None else one_group(pattern)

    @model_validator(mode="after")
    def _fits_together(self) -> ImagingSpec:
        if self.spacing_mm is not None and len(self.spacing_mm) != len(self.size):
            raise ValueError(f"spacing_mm must have {len(self.size)} numbers as size has, found {len(self.spacing_mm)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or none")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and len(numbers) != self.channels:
                raise ValueError(f"{name} must have one number per channel ({self.channels}), found {len(numbers)}")
        if self.normalise == "medicalnet" and self.dtype != "float32":
            raise ValueError(
                f"normalise = 'medicalnet' makes fractions around 0: dtype must be 'float32', found '{self.dtype}'"
            )
        if self.channels not in (1, 3) and self.volumes != "channels":
            raise ValueError(f'channels must be 1 or 3, found {self.channels}: more are those of volumes = "channels"')
        if len(self.size) == 2 and (self.volumes != "refuse" or self.gaps != "fail" or self.dose != "apart"):
            raise ValueError("volumes, gaps and dose belong to size = [depth, height, width]")
        if len(self.size) == 3 and self.frames != "refuse":
            raise ValueError(
                "frames belongs to size = [height, width]: in 3D frames are slices, and volumes says what is read"
            )
        if self.gaps == "resample" and self.max_gap_mm is None:
            raise ValueError("gaps = resample needs max_gap_mm: the widest gap between slices that may be filled")
        if "depth" in self.augment.flip and len(self.size) == 2:
            raise ValueError("augment.flip names depth, but size is [height, width]")
        return self

    @model_validator(mode="after")
    def _says_where_and_what(self) -> ImagingSpec:
        if self.orientation != "stored" and len(self.size) == 2:
            raise ValueError("orientation is of volumes, but size is [height, width]")
        if self.grid == "patient" and (self.orientation == "stored" or self.spacing_mm is None):
            raise ValueError("grid = 'patient' needs spacing_mm and an orientation, such as RAS")
        if self.pet != "stored" and self.real_world_unit is not None:
            raise ValueError("pet and real_world_unit both say what values are: give one of them")
        if self.dose != "apart" and self.real_world_unit is not None:
            raise ValueError("dose and real_world_unit both say what values are: give one of them")
        if self.dtype == "int16" and (self.pet != "stored" or self.dose != "apart"):
            raise ValueError("dtype = 'int16' rounds SUV to whole g/ml, and doses to whole Gy: expected 'float32'")
        return self

    @property
    def volumetric(self) -> bool:
        """An entry is a volume."""
        return len(self.size) == 3

    @property
    def stored_window(self) -> bool:
        """The window is applied before storing (8-bit samples, images normalised by themselves), not on the device."""
        return self.window is not None and (self.dtype == "uint8" or self.normalise == "medicalnet")
