"""How much one picture may cost."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.errors import MediaTooLarge


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Bounds of one picture. `max_bytes` counts the file, `max_pixels` width times height.

    `timeout_s` is for a whole download, from the name lookup to the last byte. URLs, and what
    they redirect to, name one of `hosts`; None is any.
    """

    max_pixels: int = 40_000_000
    max_bytes: int = 64 * 1024 * 1024
    timeout_s: float = 20.0
    max_redirects: int = 3
    allow_network: bool = True
    hosts: frozenset[str] | None = None

    def check_pixels(self, size: tuple[int, int], name: str) -> None:
        """Raise MediaTooLarge if width times height of `name` are more than allowed."""
        width, height = size
        if width * height > self.max_pixels:
            raise MediaTooLarge(
                f"{name} has {width} x {height} pixels, over the limit of"
                f" {_rounded(self.max_pixels / 1e6)} million.",
                hint="Scale it down, or raise EDGEVLM_MAX_PIXELS (max_pixels in Settings).",
            )

    def check_bytes(self, count: int, name: str) -> None:
        """Raise MediaTooLarge for `count` bytes of `name` if they are more than allowed."""
        if count > self.max_bytes:
            raise MediaTooLarge(
                f"{name} is larger than {_rounded(self.max_bytes / 2**20)} MiB.",
                hint="Save it smaller, for example as a JPEG.",
            )


DEFAULT_LIMITS = MediaLimits()


def _rounded(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"
