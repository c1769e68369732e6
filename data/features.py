"""What filters need to know of a text, computed once per document and shared between them.

Every attribute is computed when it is first asked for. Counts over words and lines are numpy arrays of small integers
(one id per distinct word), so that n-gram statistics are array operations and not loops over strings.
"""

from __future__ import annotations

import re
from functools import cached_property

VERSION = 1


class Features:
    """Lazy views of one text. `text` never changes: another text has other features."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def chunks(self) -> list[str]:
        """The text split at whitespace: words with their punctuation."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        """Lines as `str.splitlines` gives them."""
        return self.text.splitlines()

    @cached_property
    def filled_lines(self) -> list[str]:
        """Lines between "\\n" that hold more than whitespace."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def alphabetic(self) -> int:
        """How many characters are letters."""
        return len(_LETTER.findall(self.text))


_LETTER = re.compile(r"[^\W\d_]")
