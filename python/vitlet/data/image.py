"""Pictures as uint8 arrays: from files, Pillow images and arrays.

A file gives what ``PIL.Image.open(path).convert(mode)`` gives, which is what the models were
trained on, with four differences: the EXIF orientation is applied, 16-bit grey is scaled to 8 bits
instead of clipped, of an animation the first frame is taken, and pictures of more than
`MAX_PIXELS` pixels are refused before they are decoded. Alpha is dropped, not composited: a
transparent pixel shows the colour stored under it.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from vitlet._extras import require
from vitlet.errors import ImageError, ShapeError, UsageError

if TYPE_CHECKING:
    from PIL import Image as PILImage

Mode = Literal["RGB", "L"]
ImageLike: TypeAlias = "str | os.PathLike[str] | PILImage.Image | NDArray[np.uint8]"

# Pillow warns above this and raises above twice this; here it is the limit.
MAX_PIXELS = 89_478_485

_BAND_ROWS = 32
_BAND_PIXELS = 1 << 17

_ORIENTATION_TAG = 0x0112
_CHANNELS: dict[Mode, int] = {"RGB": 3, "L": 1}

# What is decoded for strangers: no formats that start other programs or hold many pictures.
SAFE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

__all__ = ["MAX_PIXELS", "SAFE_FORMATS", "ImageLike", "Mode", "decode_image", "load_image"]


def load_image(image: ImageLike, mode: Mode = "RGB") -> NDArray[np.uint8]:
    """Return a picture as an array.

    Args:
        image: a path, a Pillow image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4);
            arrays are taken as grey, grey, RGB and RGB with alpha.
        mode: "RGB", or "L" for grey.

    Returns:
        uint8 (H, W, 3), or (H, W, 1) for "L".

    Raises:
        ImageError: the file is damaged, is no image, or is too large.
        UsageError: there is no such file, or it is a folder.
        ShapeError: an array of another shape or dtype.
        MissingDependencyError: a path was given and Pillow is not installed.
    """
    if mode not in _CHANNELS:
        raise UsageError(f'mode must be "RGB" or "L", got {mode!r}')
    if isinstance(image, np.ndarray):
        return _from_array(image, mode)
    if isinstance(image, str | os.PathLike):
        return _from_file(Path(image), mode)
    # A Pillow image can only be there if its maker imported Pillow.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return _from_pillow(cast("PILImage.Image", image), mode, "image")
    raise UsageError(
        f"an image must be a path, a Pillow image or a uint8 array, got {type(image).__name__}"
    )


def decode_image(content: bytes, mode: Mode = "RGB") -> NDArray[np.uint8]:
    """Return the picture in the bytes of an image file of one of `SAFE_FORMATS`.

    Args:
        content: of the file.
        mode: "RGB", or "L" for grey.

    Returns:
        uint8 (H, W, 3), or (H, W, 1) for "L".

    Raises:
        ImageError: it is damaged, is no image, or is too large.
        MissingDependencyError: Pillow is not installed.
    """
    pillow = require("PIL.Image", extra="runtime", why="read image files")
    if not content:
        raise ImageError("what was sent is empty (0 bytes)")
    return _decoded(pillow, io.BytesIO(content), mode, "what was sent", SAFE_FORMATS)


def _from_array(array: NDArray[Any], mode: Mode) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ShapeError(f"an image array must be uint8 (0 to 255), got {array.dtype}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ShapeError(
            "an image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) and not empty, "
            f"got {array.shape}"
        )
    if array.shape[2] == 4:
        array = array[:, :, :3]
    if array.shape[2] == _CHANNELS[mode]:
        return array
    if mode == "RGB":
        return np.broadcast_to(array, (*array.shape[:2], 3))
    # Pillow's integer form of ITU-R BT.601 luma.
    red, green, blue = (array[:, :, c].astype(np.uint32) for c in range(3))
    grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return grey.astype(np.uint8)[:, :, None]


def _from_file(path: Path, mode: Mode) -> NDArray[np.uint8]:
    pillow = require("PIL.Image", extra="runtime", why="read image files")
    if not path.exists():
        raise UsageError(f"no such image file: {path}")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise UsageError(f"expected an image file, but {path} is {what}")
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes)")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from None
    return _decoded(pillow, path, mode, str(path), None)


def _decoded(
    pillow: Any, source: Any, mode: Mode, name: str, formats: tuple[str, ...] | None
) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # Pillow's warnings about odd metadata are no use to somebody who wants the pixels.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(source, formats=formats) as image:
                return _from_pillow(image, mode, name)
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError):
        raise ImageError(_too_large(name)) from None
    except pillow.UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that Pillow can read") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}") from None
    except ImageError:
        raise
    except Exception as error:  # on damaged data Pillow raises nearly anything
        raise ImageError(f"{name} is damaged: {error}") from None


def _from_pillow(image: PILImage.Image, mode: Mode, name: str) -> NDArray[np.uint8]:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_large(name))
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name} has no pixels: {image.width} x {image.height}")
    try:
        image.load()
        upright = _upright(image)
        return _pixels(upright, mode, name)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(
            f"{name} ({image.width} x {image.height}) does not fit in memory"
        ) from None
    except Exception as error:  # on damaged data the decoders raise nearly anything
        raise ImageError(f"{name} is damaged: {error}") from None


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS:,} pixels; shrink it first"


def _upright(image: PILImage.Image) -> PILImage.Image:
    """Undo the camera's rotation; damaged or absent EXIF data means upright."""
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the metadata is damaged, the pixels are not
        return image
    return image.transpose(turn[orientation]) if orientation in turn else image


def _pixels(image: PILImage.Image, mode: Mode, name: str) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels; convert it to 8 bits first")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow may also hold as 32-bit "I"
        deep = np.asarray(image).astype(np.int64)
        grey = (np.clip(deep, 0, 65535) >> 8).astype(np.uint8)
        return np.ascontiguousarray(_from_array(grey, mode))
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the transparency
    if image.mode != mode:
        image = image.convert("RGB").convert(mode)
    array = _to_array(image)
    return array[:, :, None] if mode == "L" else array


def _to_array(image: PILImage.Image) -> NDArray[np.uint8]:
    """Return ``np.asarray(image)``, of a large picture in half the time.

    Pillow packs its four-byte pixels into one bytes object; in bands, that stays in the cache.
    """
    if image.width * image.height <= _BAND_PIXELS:
        return np.asarray(image)
    shape = (image.height, image.width, len(image.getbands()))
    array = np.empty(shape if shape[2] > 1 else shape[:2], np.uint8)
    for top in range(0, image.height, _BAND_ROWS):
        bottom = min(image.height, top + _BAND_ROWS)
        array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return array
