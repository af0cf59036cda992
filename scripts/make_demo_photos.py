"""Write python/vitlet/data/assets/photos/: five small photographs from scikit-image's wheel.

    pip install scikit-image pillow
    python scripts/make_demo_photos.py

Only pictures that lie inside the wheel (nothing is downloaded) and are in the public domain or CC0.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parents[1] / "python/vitlet/data/assets/photos"
LONG_SIDE = 320  # pixels
QUALITY = 88

# name: (file in skimage/data, whose, licence and source)
PHOTOS = {
    "astronaut": (
        "astronaut.png",
        "Eileen Collins, NASA",
        "public domain, NASA Great Images, https://flic.kr/p/r9qvLn",
    ),
    "cat": ("chelsea.png", "Chelsea, Stefan van der Walt", "CC0"),
    "coffee": ("coffee.png", "Pikolo Espresso Bar, Rachel Michetti", "CC0"),
    "galaxies": (
        "hubble_deep_field.jpg",
        "Hubble eXtreme Deep Field, NASA",
        "public domain, http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    ),
    "rocket": (
        "rocket.jpg",
        "launch of DSCOVR on Falcon 9, SpaceX",
        "public domain, https://www.flickr.com/photos/spacexphotos/16511594820/",
    ),
}


def main() -> None:
    """Shrink each photograph and write the list of licences."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (source, whose, licence) in PHOTOS.items():
        with Image.open(str(files("skimage") / "data" / source)) as image:
            small = image.convert("RGB")
        small.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        path = OUT / f"{name}.jpg"
        small.save(path, quality=QUALITY, optimize=True)
        rows.append(f"| {path.name} | {whose} | {licence} |")
        print(f"{path.name}: {small.width} x {small.height}, {path.stat().st_size} bytes")
    table = "\n".join(["| file | picture | licence and source |", "|---|---|---|", *rows])
    (OUT / "LICENCES.md").write_text(
        "# Licences of the demonstration photographs\n\n"
        "Taken from the sample data of scikit-image, whose documentation states these licences,\n"
        f"and shrunk to {LONG_SIDE} pixels by `scripts/make_demo_photos.py`.\n\n{table}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
