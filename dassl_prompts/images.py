"""Image files and members of zip archives: reading them, finding them in folders, noticing missing ones."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from PIL import ExifTags, Image, UnidentifiedImageError, features

#: separates an archive from its member in an image path: ``emoji.zip::smileys/1f600.png``
MEMBER_SEPARATOR = "::"

_archives: dict[str, zipfile.ZipFile] = {}
# A forked worker shares its parent's file offset, so it has to open archives of its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_archives.clear)


#: Pillow's name of a format -> its suffixes; none whose reader starts another program, as that of EPS does
_FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
}
#: formats that a Pillow may have been built without, and its name for what they need
_OPTIONAL = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}


def _is_built_in(name: str) -> bool:
    feature = _OPTIONAL.get(name)
    known = feature in features.modules or feature in features.codecs
    return feature is None or bool(known and features.check(feature))


#: formats that the installed Pillow reads
FORMATS = tuple(name for name in _FORMATS if _is_built_in(name))
#: their suffixes; where one name has several files, the earlier suffix wins
IMAGE_SUFFIXES = tuple(suffix for name in FORMATS for suffix in _FORMATS[name])

#: how pictures are turned: "stored" as their rows lie in the file, which is how CoOp reads benchmark data, or
#: "camera" as the EXIF tag says that the camera was held
ORIENTATIONS = ("stored", "camera")
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: bytes that a member of an archive may unpack to; far above any picture, far below what a small archive can hold
MAX_MEMBER_BYTES = 1 << 29


class ImageReadError(OSError):
    """An image exists but cannot be used; ``path`` is the offending file, the message says why and what to do.

    Built from one message, because DataLoader re-raises a worker's exception that way.
    """

    path: str = ""


def _unreadable(
    path: str, reason: object, remedy: str = "the file is corrupt or incomplete, fetch it again"
) -> ImageReadError:
    error = ImageReadError(f"cannot read image {path}: {reason}; {remedy}")
    error.path = path
    return error


def check_orientation(orientation: str, what: str = "INPUT.ORIENTATION") -> str:
    """``orientation`` if it is one of :data:`ORIENTATIONS`.

    Raises:
        ValueError: it is not; names ``what``.
    """
    if orientation not in ORIENTATIONS:
        raise ValueError(f"{what} is {orientation!r}; choose one of {', '.join(ORIENTATIONS)}")
    return orientation


def split_member(path: str) -> tuple[str, str | None]:
    """``"a.zip::b.png"`` -> ``("a.zip", "b.png")``; a plain path -> ``(path, None)``."""
    archive, separator, member = path.partition(MEMBER_SEPARATOR)
    return (archive, member) if separator else (path, None)


def open_archive(path: str) -> zipfile.ZipFile:
    """The zip archive ``path``, opened once per process.

    Raises:
        FileNotFoundError: no such archive.
        ImageReadError: it is not a readable zip file.
    """
    archive = _archives.get(path)
    if archive is None:
        try:
            archive = _archives[path] = zipfile.ZipFile(path)
        except Exception as error:
            if _is_the_systems(error):
                raise
            raise _unreadable(path, error) from error
    return archive


def _read_member(path: str, archive_path: str, member: str) -> bytes:
    archive = open_archive(archive_path)
    try:
        size = archive.getinfo(member).file_size
        if size > MAX_MEMBER_BYTES:
            raise _unreadable(path, f"it unpacks to {size:,} bytes, the limit is {MAX_MEMBER_BYTES:,}", "unpack it")
        return archive.read(member)
    except KeyError:
        raise FileNotFoundError(f"archive {archive_path} has no member {member!r}") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed by a method that zipfile lacks
        raise _unreadable(path, error, "unpack the archive and pack it anew") from error
    except Exception as error:
        if isinstance(error, ImageReadError) or _is_the_systems(error):
            raise
        raise _unreadable(path, error) from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of a picture's file or of an archive's member, not decoded.

    Raises:
        OSError: as :func:`read_image` for what cannot be reached.
    """
    path = os.fspath(path)
    archive, member = split_member(path)
    if member is not None:
        return _read_member(path, archive, member)
    with open(path, "rb") as file:
        return file.read()


def _is_the_systems(error: Exception) -> bool:
    """Whether an error is one of the operating system, which a seek to a place that a damaged file names is not."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL))


def read_image(path: str | os.PathLike, orientation: str = "stored") -> Image.Image:
    """Decode an image as RGB with 8 bits per channel.

    Grey pictures of 9 to 16 bits keep their upper 8, as Pillow itself reads colour ones. Pixels without a fixed
    range (floating point, 32 bits) are refused instead of clipped.

    Args:
        path: a file, or ``archive.zip::member``.
        orientation: one of :data:`ORIENTATIONS`. TIFF files are turned by Pillow in either case.

    Raises:
        FileNotFoundError: the file, archive or member does not exist.
        ImageReadError: it is there but corrupt, truncated, too large, or of a kind that is not read.
    """
    return decode_image(None, os.fspath(path), orientation)


def decode_image(
    content: bytes | None, path: str, orientation: str = "stored", max_pixels: int | None = None
) -> Image.Image:
    """:func:`read_image` of a file's content, of which no more than ``max_pixels`` are decoded; ``path`` is for messages."""
    check_orientation(orientation, "orientation")
    image, turn = _decode(path, None if content is None else io.BytesIO(content), max_pixels)
    image = _to_rgb(image, path)
    return image.transpose(_TURN[turn]) if orientation == "camera" and turn in _TURN else image


def _decode(path: str, source: io.BytesIO | None = None, max_pixels: int | None = None) -> tuple[Image.Image, int]:
    """The picture with its pixels as they are stored, and its EXIF orientation."""
    if source is None:
        archive_path, member = split_member(path)
        source = path if member is None else io.BytesIO(_read_member(path, archive_path, member))
    try:
        with Image.open(source, formats=FORMATS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            image.load()
            return image, _exif_orientation(image)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise _unreadable(
            path, f"it is none of {known}", "the file is corrupt, or has to be converted to one of them"
        ) from None
    except Image.DecompressionBombError:
        limit = max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise _unreadable(path, f"it has more than {limit:,} pixels, the limit", "scale it down") from None
    except Exception as error:  # decoders let every kind of exception through on damaged files
        if _is_the_systems(error):
            raise error if isinstance(error, MemoryError) else type(error)(error.errno, error.strerror, path) from None
        raise _unreadable(path, str(error) or type(error).__name__) from error


def image_notes(path: str | os.PathLike) -> list[str]:
    """What :func:`read_image` does to a picture that its owner may not expect.

    Raises:
        FileNotFoundError, ImageReadError: as :func:`read_image`.
    """
    path = os.fspath(path)
    image, turn = _decode(path)
    _to_rgb(image, path)
    notes = []
    if excess := excess_depth(image):
        notes.append(f"have {8 + excess} bits per channel, of which the upper 8 are read")
    if turn in _TURN:
        notes.append("were taken with a turned camera and stay as they are stored unless INPUT.ORIENTATION is camera")
    return notes


def _exif_orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged notes about a whole picture
        return 1


def excess_depth(image: Image.Image) -> int | None:
    """Bits that a picture has beyond 8 per channel; None where its pixels have no fixed range."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]
        return bits - 8
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in a wider type
        return 8
    return None if image.mode in ("I", "F") else 0


def _to_rgb(image: Image.Image, path: str) -> Image.Image:
    excess = excess_depth(image)
    if excess is None:
        raise _unreadable(
            path,
            f"its pixels ({image.format}, mode {image.mode}) have no fixed range",
            "store it with 8 or 16 bits per channel",
        )
    if excess:
        import numpy as np

        pixels = (np.asarray(image) >> excess).astype(np.uint8)
        # Pillow turns TIFFs that store white as 0 only where they have 8 bits
        white_is_zero = getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0
        image = Image.fromarray(255 - pixels if white_is_zero else pixels)
    if image.mode == "RGB":
        return image  # convert() would copy it, which is 96 MB of a photo of 24 megapixels
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise _unreadable(path, f"{error} ({image.format})", "store it as RGB") from error


#: sides' ratio from which a resized picture is made only where a centre crop looks at it
EXTREME_RATIO = 20


def central_part(image: Image.Image, size: int, crop: Sequence[int], resample: int) -> Image.Image | None:
    """What a centre crop takes of a very long picture whose shorter edge is resized to ``size``; None for others.

    A line of 1 x 20,000 pixels would otherwise grow to 224 x 4,480,000 before 224 x 224 of it are used.

    Args:
        crop: (height, width) of the crop that follows. resample: Pillow's filter.
    """
    short, long = sorted(image.size)
    if long < EXTREME_RATIO * short:
        return None
    axis = int(image.height > image.width)  # of the longer edge, in Pillow's order
    length, wanted = int(size * long / short), crop[1 - axis]
    start = int(round((length - wanted) / 2))  # as torchvision's centre crop rounds
    box, new = [0, 0, *image.size], [size, size]
    box[axis], box[axis + 2] = start * long / length, (start + wanted) * long / length
    new[axis] = wanted
    return image.resize(new, resample, box=box)


# -- finding images ----------------------------------------------------------------------------------------


def is_image_name(name: str) -> bool:
    """Whether a file's suffix is that of a format that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def suffix_of(name: str) -> str:
    """A file's suffix in small letters, for counting."""
    return os.path.splitext(name)[1].lower() or "without suffix"


def walk_images(folder: str | os.PathLike, left_out: Counter | None = None) -> Iterator[str]:
    """Paths of the images below ``folder``, one at a time, in alphabetical order folder by folder.

    Args:
        left_out: counts the suffixes of all other files.
    """
    for parent, subfolders, files in os.walk(folder):
        subfolders.sort()
        for name in sorted(files):
            if is_image_name(name):
                yield os.path.join(parent, name)
            elif left_out is not None:
                left_out[suffix_of(name)] += 1


def describe_left_out(left_out: Counter) -> str:
    """One line about files that are no images by their suffix; "" when there are none."""
    if not left_out:
        return ""
    named = ", ".join(f"{count:,} {suffix}" for suffix, count in left_out.most_common())
    return f"left out {left_out.total():,} files of formats that are not read: {named}"


def missing_images(paths: Iterable[str]) -> list[str]:
    """Paths that do not exist, folder by folder; one listing per folder or archive, no access per image."""
    wanted = defaultdict(dict)
    for path in paths:
        archive, member = split_member(path)
        folder, name = os.path.split(path) if member is None else (archive, member)
        wanted[folder, member is None][name] = path
    missing = []
    for (folder, is_folder), names in wanted.items():
        present = _names_in_folder(folder) if is_folder else _names_in_archive(folder)
        missing += [path for name, path in names.items() if name not in present]
    return missing


def _names_in_folder(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _names_in_archive(path: str) -> set[str]:
    return set(open_archive(path).namelist()) if os.path.exists(path) else set()


def check_images(paths: Sequence[str], what: str, obtain: str = "") -> None:
    """Raise FileNotFoundError with counts and the first names when images are missing.

    Args:
        what: the dataset, for the message.
        obtain: what to do about it, for the message.
    """
    require_all(missing_images(paths), len(paths), what, obtain)


def require_all(missing: Sequence[str], total: int, what: str, obtain: str = "") -> None:
    """The error of :func:`check_images` where the missing ones are known."""
    if missing:
        first = "".join(f"\n  {path}" for path in missing[:5])
        more = f"\n  ... and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise FileNotFoundError(
            f"{what}: {len(missing):,} of {total:,} images are missing:{first}{more}\n{obtain}".rstrip()
        )


def spelled_otherwise(missing: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """For missing files the path that differs in case only, where there is exactly one that is not in ``taken``.

    A list made on a system that does not distinguish case may name ``Cat/1.JPG`` for ``cat/1.jpg``.
    """
    listings: dict[str, dict[str, list[str]]] = {}

    def in_folder(folder: str, name: str) -> str | None:
        if folder not in listings:
            listings[folder] = defaultdict(list)
            for entry in _names_in_folder(folder):
                listings[folder][entry.casefold()].append(entry)
        found = listings[folder].get(name.casefold(), [])
        return name if name in found else found[0] if len(found) == 1 else None

    def resolve(path: str) -> str | None:
        folder, name = os.path.split(path)
        if not name or os.path.lexists(path):
            return path
        parent = resolve(folder)
        own = parent and in_folder(parent, name)
        return os.path.join(parent, own) if own else None

    found = {path: resolve(path) for path in missing if split_member(path)[1] is None}
    uses = Counter(found.values()) + Counter(taken)
    return {path: other for path, other in found.items() if other and uses[other] == 1}
