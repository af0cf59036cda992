"""The keys that messages travel under: `vit/CLUSTER/...`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitlet.errors import UsageError

ROOT = "vit"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def check_name(name: str, what: str) -> str:
    """Return the name of a device or cluster.

    Raises:
        UsageError: anything but small letters, digits and hyphens, 32 at most.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{what} must be small letters, digits and hyphens, at most 32, got {name!r}"
        )
    return name


@dataclass(frozen=True)
class Topics:
    """The keys of one cluster.

    Attributes:
        cluster: its name.
    """

    cluster: str

    def live(self, device: str, epoch: int) -> str:
        """Return the key under which a worker's process is present."""
        return f"{ROOT}/{self.cluster}/live/{device}/{epoch:016x}"

    @property
    def everybody(self) -> str:
        """The pattern of every worker's presence."""
        return f"{ROOT}/{self.cluster}/live/*/*"

    def infer(self, plan: str, slot: int | str, device: str) -> str:
        """Return the key that a worker answers requests on; `slot` may be "*"."""
        return f"{ROOT}/{self.cluster}/infer/{plan}/{slot}/{device}"

    def about(self, device: str) -> str:
        """Return the key under which a worker tells what it can do and how it is."""
        return f"{ROOT}/{self.cluster}/cap/{device}"

    def control(self, device: str) -> str:
        """Return the key that takes plans, bundles and orders."""
        return f"{ROOT}/{self.cluster}/ctl/{device}"

    def metrics(self, device: str) -> str:
        """Return the key that a worker publishes its state under, once a second."""
        return f"{ROOT}/{self.cluster}/metrics/{device}"

    @staticmethod
    def who(key: str) -> tuple[str, int]:
        """Return device and epoch of a key of `live`.

        Raises:
            ValueError: it is no such key.
        """
        _, _, kind, device, epoch = key.split("/")
        if kind != "live":
            raise ValueError(f"{key} is not a presence")
        return device, int(epoch, 16)
