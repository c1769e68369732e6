"""What must be the same for a checkpoint to be of this run, how two records of a run differ, where it stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = ("loader.global_batch_size", "loader.seq_len")  # a position in the data holds across a change of these


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands in its data: `row` is the first global row of the batch after step `step`.

    tokens_per_row: on average, which is how a row is found again where seq_len changed.
    """

    step: int
    row: int
    tokens_per_row: float

    def row_at(self, tokens_per_row: float) -> int:
        """The row before which as many tokens lie where a row has so many: the same one where that did not change."""
        return round(self.row * self.tokens_per_row / tokens_per_row)


class Mismatch(ValueError):
    """A checkpoint that is whole, and not of this run."""


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """JSON values by dotted name."""
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{at}.{name}" if at else name).items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{at}.{i}").items()}
    return {at: value}


def check_same(where: Any, saved: Mapping[str, Any], given: Mapping[str, Any], *, carry_on: bool) -> None:
    """Refuses a checkpoint of another model, optimizer or dataset; where: its folder, for the message.

    saved, given: identities, of the checkpoint and of the run that is to go on. carry_on: whether SIZES may differ.
    Errors: Mismatch that names the first difference and what to do.
    """
    before, now = flat(saved), flat(given)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and not (name in SIZES and carry_on):
            raise Mismatch(
                f"checkpoint {where} is of another run: it has {name}={before.get(name)!r}, this config has "
                f"{now.get(name)!r}; set it back, or give this run a run_dir of its own"
                + ("; or set checkpoint.carry_on=True to go on from the same token" if name in SIZES else "")
            )
