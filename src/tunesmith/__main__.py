"""Entry point of `tunesmith` and `python -m tunesmith`."""

import os

# Ragged batches bring a new shape almost every step, and torch keeps a compiled kernel for each of the last 1,024 on a
# CPU: about 1 GB that is never used again. It reads these limits once, when it is imported.
CPU_KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def limit_kernels() -> None:
    """Set the limits, unless the user did; without effect once torch is imported."""
    for name, limit in CPU_KERNELS_KEPT.items():
        os.environ.setdefault(name, limit)


def main() -> None:
    limit_kernels()
    try:
        from tunesmith.cli.main import run

        run()
    except KeyboardInterrupt:  # while this much was being loaded
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
