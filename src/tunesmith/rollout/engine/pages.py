"""The cache of keys and values, in pages that rows take, share and give back (arXiv:2309.06180).

Shapes: P pages of L places, K key heads of width E; B rows with at most N pages each; W = the query heads of a key head
side by side. With compiled kernels the keys of 16 places stand side by side within a page; elsewhere in plain order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.models.native import decode
from tunesmith.models.native.decode import PLACES

FIRST = 64  # pages to begin with; their number doubles when they are used up


@dataclass(slots=True)
class Row:
    """Tokens in a cache: the pages that hold them, in order, and their number."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """What a step reads and writes: every row's pages (filled up with any), what it sees, and where its token goes."""

    pages: Int[Tensor, "B N"]
    lengths: Int[Tensor, " B"]
    places: Int[Tensor, " B"]


class Pages:
    """Pages of all layers at once: page p of a row is page p of every layer."""

    def __init__(self, layers: int, heads: int, width: int, like: Tensor) -> None:
        self.native = like.device.type == "cpu" and decode.serves(like.dtype, width)
        self.layers = [like.new_empty(2, 0, heads, PLACES, width) for _ in range(layers)]
        self.users: list[int] = []  # rows that hold each page
        self.free: list[int] = []

    @property
    def used(self) -> int:
        return len(self.users) - len(self.free)

    def bytes_of(self, tokens: int) -> int:
        """What a row of so many tokens takes."""
        each = sum(layer[:, :1].numel() if layer.shape[1] else 2 * layer.shape[2:].numel() for layer in self.layers)
        return -(-tokens // PLACES) * each * self.layers[0].element_size()

    def take(self) -> int:
        """A page for one row; its contents are anything."""
        if not self.free:
            self.grow(max(FIRST, len(self.users)))
        page = self.free.pop()
        self.users[page] = 1
        return page

    def grow(self, count: int) -> None:
        """More pages; values beyond what a row sees are multiplied by 0, so none may be NaN."""
        for number, layer in enumerate(self.layers):
            more = layer.new_zeros(2, count, *layer.shape[2:])
            self.layers[number] = torch.cat([layer, more], 1)
        self.free += range(len(self.users) + count - 1, len(self.users) - 1, -1)
        self.users += [0] * count

    def extend(self, row: Row, count: int) -> list[int]:
        """Room for `count` more tokens; the places of these."""
        begin, row.length = row.length, row.length + count
        while len(row.pages) * PLACES < row.length:
            row.pages.append(self.take())
        return [row.pages[at // PLACES] * PLACES + at % PLACES for at in range(begin, row.length)]

    def fork(self, row: Row) -> Row:
        """Another row that goes on from the same tokens: full pages are shared, the last one is copied."""
        whole, rest = divmod(row.length, PLACES)
        made = Row(row.pages[:whole], row.length)
        for page in made.pages:
            self.users[page] += 1
        if rest:
            made.pages.append(self.take())
            for layer in self.layers:
                layer[:, made.pages[-1]] = layer[:, row.pages[whole]]
        return made

    def release(self, row: Row) -> None:
        for page in row.pages:
            self.users[page] -= 1
            if not self.users[page]:
                self.free.append(page)
        row.pages, row.length = [], 0

    def cut(self, row: Row, length: int) -> None:
        """Forget the tokens behind the first `length` of a row; the page that it goes on in must be its own."""
        whole = -(-length // PLACES)
        self.release(Row(row.pages[whole:], 0))
        del row.pages[whole:]
        row.length = length
        assert length % PLACES == 0 or self.users[row.pages[-1]] == 1, "another row reads this page"

    def view_along(self, row: Row, count: int) -> View:
        """Room for `count` more tokens of one row, each of which sees what stands before it, and itself."""
        places = self.extend(row, count)
        table = torch.tensor(row.pages, dtype=torch.int32).expand(count, -1).contiguous()
        lengths = torch.arange(row.length - count, row.length) + 1
        return View(table, lengths, torch.tensor(places))

    def view(self, rows: Sequence[Row]) -> View:
        """Room for one more token of each row."""
        places = [self.extend(row, 1)[0] for row in rows]
        most = max(len(row.pages) for row in rows)
        table = [row.pages + [0] * (most - len(row.pages)) for row in rows]
        lengths = torch.tensor([row.length for row in rows])
        return View(torch.tensor(table, dtype=torch.int32), lengths, torch.tensor(places))

    def keep(
        self, layer: int, key: Float[Tensor, "K T E"], value: Float[Tensor, "K T E"], places: Int[Tensor, " T"]
    ) -> None:
        cache = self.layers[layer]
        if self.native:
            decode.keep(cache, key, value.contiguous(), places)
            return
        pages, place = places // PLACES, places % PLACES
        cache[0][pages, :, place] = key.transpose(0, 1)
        cache[1][pages, :, place] = value.transpose(0, 1)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "K B W"],
        view: View,
        window: int | None,
        scale: float,
        out: Float[Tensor, "B Q"],
    ) -> None:
        """out = attention of one query a row over the places that it sees, the newest `window` of them."""
        if self.native:
            decode.attend_pages(query, self.layers[layer], view.pages, view.lengths, window, scale, out)
        else:
            attend_plainly(query, self.layers[layer], view, window, scale, out)


def attend_plainly(
    query: Float[Tensor, "K B W"],
    cache: Float[Tensor, "2 P K L E"],
    view: View,
    window: int | None,
    scale: float,
    out: Float[Tensor, "B Q"],
) -> None:
    """The same in torch, for pages in plain order; what the kernel is held against."""
    keys, values = (cache[which][view.pages.long()].transpose(1, 2).flatten(2, 3) for which in (0, 1))
    apart = query.unflatten(2, (-1, keys.shape[3])).transpose(0, 1)
    scores = (apart @ keys.transpose(2, 3)).float() * scale
    at, lengths = torch.arange(keys.shape[2]), view.lengths[:, None]
    hidden = at >= lengths
    if window is not None:
        hidden |= at < lengths - window
    chances = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1).to(values.dtype)
    out.copy_((chances @ values).flatten(1))
