"""Packages for a GPU machine without a network: `pack` here into a few small archives, `unpack` there into folders."""

import argparse
import fnmatch
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# What a machine with torch, transformers, accelerate, tokenizers and safetensors lacks; exact versions, no resolving.
# Each name is an archive; `common` is read by every peer.
CONTENTS = {
    "tunesmith": (
        "annotated-doc==0.0.7 annotated-types==0.8.0 gguf==0.19.0 jaxtyping==0.3.11 jinja2==3.1.6 "
        "markdown-it-py==4.3.0 markupsafe==3.0.4 mdurl==0.1.2 peft==0.21.2 psutil==7.2.2 "
        "pydantic==2.14.3 pydantic-core==2.50.4 pygments==2.21.0 "
        "pyyaml==6.0.3 rich==15.0.0 shellingham==1.5.4 typer==0.29.2 typing-extensions==4.16.0 "
        "typing-inspection==0.4.5 wadler-lindig==0.1.8 click==8.5.1"
    ),
    "tests": (
        "beartype==0.23.1 hypothesis==6.170.15 iniconfig==2.3.1 packaging==26.3 pluggy==1.7.0 pytest==9.2.0 "
        "pytest-timeout==2.4.0 sortedcontainers==2.4.0"
    ),
    "common": (
        "aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 attrs==26.1.0 certifi==2026.10.18 "
        "charset-normalizer==3.5.2 datasets==4.8.5 dill==0.4.1 frozenlist==1.8.0 fsspec==2026.2.0 idna==3.20 "
        "liger-kernel==0.8.5 multidict==7.2.1 multiprocess==0.70.19 pandas==3.1.1 peft==0.21.2 propcache==0.5.4 "
        "psutil==7.2.2 pyarrow==26.0.1 python-dateutil==4.0.0 requests==2.34.2 tzdata==2026.6 urllib3==2.8.0 "
        "xxhash==4.1.0 yarl==1.25.1"
    ),
    "trl": "trl==1.16.0",
    "unsloth": (
        "bitsandbytes==0.50.2 cut-cross-entropy==25.1.1 docstring-parser==0.18.0 einops==0.8.2 "
        "json5==0.17.3 msgspec==0.22.0 nest-asyncio==1.6.0 protobuf==7.36.2 shtab==1.13.0 structlog==26.1.0 "
        "torchao==0.18.0 trl==1.15.0 typeguard==4.6.0 tyro==1.0.17 unsloth==2026.10.9 unsloth-zoo==2026.10.9"
    ),
}
# Files that training never reads. libarrow itself needs libarrow_substrait.
USELESS = (
    "pyarrow/include/*",
    "pyarrow/tests/*",
    "pyarrow/src/*",
    "pyarrow/*flight*",
    "pyarrow/*gandiva*",
    "pyarrow/_s3fs*",
    "pyarrow/_gcsfs*",
    "pyarrow/_azurefs*",
    "pyarrow/_orc*",
    "pyarrow/libarrow_s3*",
    "pyarrow/libarrow_python*.so",
    "pyarrow/libarrow_python*.so.*.*.*",
    "pyarrow/_pyarrow_cpp_tests*",
    "pyarrow/*.pyx",
    "pyarrow/*.pxd",
    "pandas/tests/*",
    "bitsandbytes/libbitsandbytes_[!c]*",
    "bitsandbytes/libbitsandbytes_cuda1[!3]*",
    "bitsandbytes/libbitsandbytes_cuda13[!0]*",
    "test/*",
    "unsloth/studio/*",
    "unsloth_zoo/mlx/*",
    "studio/*",
    "*.data/scripts/*",
)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="download and shrink; needs a network")
    packing.add_argument("folder", type=Path, help="where the archives are written")
    packing.add_argument("--only", nargs="*", choices=CONTENTS, default=list(CONTENTS))
    packing.add_argument("--python", default="3.12", help="version on the GPU machine")
    unpacking = verbs.add_parser("unpack", help="the archives that are there, each into NAME/site-packages")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("target", type=Path, help="give it to gpu.py as --peers")
    choices = parser.parse_args()
    if choices.verb == "pack":
        choices.folder.mkdir(parents=True, exist_ok=True)
        sizes = [pack(name, choices.folder, choices.python) for name in choices.only]
        print(f"{sum(sizes) / 2**20:.1f} MiB in all")
    else:
        for archive in sorted(choices.folder.glob("*.zip")):
            unpack(archive, choices.target / archive.stem / "site-packages")


def pack(name: str, folder: Path, python: str) -> int:
    """One archive of what the wheels would install, without useless files; prints and returns its size."""
    archive = folder / f"{name}.zip"
    with tempfile.TemporaryDirectory() as wheels:
        download(CONTENTS[name].split(), wheels, python)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as packed:
            for wheel in sorted(Path(wheels).glob("*.whl")):
                before = archive.stat().st_size
                add(wheel, packed)
                print(f"  {(archive.stat().st_size - before) / 2**20:6.1f} MiB  {wheel.name}")
    print(f"{archive.stat().st_size / 2**20:8.1f} MiB  {archive}")
    return archive.stat().st_size


def download(pins: list[str], folder: str, python: str) -> None:
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    pip = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    subprocess.run([*pip, *target, "--dest", folder, *pins], check=True)


def add(wheel: Path, packed: zipfile.ZipFile) -> None:
    with zipfile.ZipFile(wheel) as given:
        for entry in given.infolist():
            if not entry.is_dir() and not any(fnmatch.fnmatch(entry.filename, pattern) for pattern in USELESS):
                packed.writestr(place_of(entry.filename), given.read(entry), zipfile.ZIP_LZMA)


def place_of(name: str) -> str:
    """Where an installer would put the file: `x.data/purelib/y` is `y`."""
    top, _, rest = name.partition("/")
    return rest.partition("/")[2] if top.endswith(".data") and rest.startswith(("purelib/", "platlib/")) else name


def unpack(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            place = folder / entry.filename
            if not place.resolve().is_relative_to(folder.resolve()):
                raise SystemExit(f"{archive}: {entry.filename} lies outside the folder")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(packed.read(entry))
    print(f"{archive.name}: {len(list(folder.iterdir()))} entries in {folder}")


if __name__ == "__main__":
    main()
