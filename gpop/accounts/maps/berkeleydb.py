"""
EDGE: looking up a key in a Berkeley DB file, hash or btree, as postmap and makemap write them.

Of Berkeley DB this is only what a look-up of one key needs: no environment, no transactions, no
writing. The formats have been frozen since 2001 (version 8 and 9 of both, Berkeley DB 4.x to 5.3);
docs/virtual-users.md says why there is no library here. Layouts, in the file's own byte order:

    page 0      metadata: magic at 12, version 16, page size 20, kind of page 25, last page 32, flags 48;
                btree: root 88; hash: bucket count and masks 72-80, spares 96-224
    every page  its own number at 8, next page 16, items 20 (u16), kind 25; places of items from 26 on
    hash        items alternate, key then value; an item ends where the one before it begins
    btree       internal pages: (key, child); leaf pages: key, value; an item says how long it is

Everything is believed only as far as it lies inside the file and the page; a look-up reads at most
MAX_PAGES pages, so no damaged chain or tree is followed for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gpop.accounts.maps.errors import MapError
from gpop.accounts.maps.octets import MapOctets

HASH_MAGIC, BTREE_MAGIC = 0x061561, 0x053162
MAGIC_OF = {"hash": HASH_MAGIC, "btree": BTREE_MAGIC}
VERSIONS = (8, 9)
META_OCTETS = 512
META_PAGE_OF = {"hash": 8, "btree": 9}
CHECKSUMS = 0x01  # in the metadata's own flags
# Several databases in one file; of a btree also records by number, and compression.
NOT_READ = {"hash": 0x02, "btree": 0x20 | 0x02 | 0x80}

PAGE_HEAD_OCTETS = 26
HASH_UNSORTED, INTERNAL, LEAF, OVERFLOW, HASH_SORTED = 2, 3, 5, 7, 13

# Kinds of items. The btree's may have DELETED set.
HASH_PLAIN, HASH_DUPLICATES, HASH_ELSEWHERE, HASH_DUPLICATES_ELSEWHERE = 1, 2, 3, 4
TREE_PLAIN, TREE_DUPLICATES_ELSEWHERE, TREE_ELSEWHERE = 1, 2, 3
DELETED = 0x80

# "%$sniglet^&" with its NUL, hashed: a file that says otherwise was made with another hash function.
HASH_CHECK_KEY = b"%$sniglet^&\0"
MAX_DEPTH = 32
MAX_PAGES = 1024
MAX_VALUE_OCTETS = 65536


class Page:
    """One page: its octets and, checked, the places of its items."""

    __slots__ = ("kind", "next", "octets", "places")

    def __init__(self, octets: bytes, kind: int, next_page: int, places: tuple[int, ...]) -> None:
        self.octets = octets
        self.kind = kind
        self.next = next_page
        self.places = places


class BerkeleyDb:
    """An open file of `kind` ("hash" or "btree"), under a shared lock until it is closed."""

    def __init__(self, name: str, path: str, kind: str) -> None:
        """Raises MapError."""
        self._octets = MapOctets(name, path, locked=True)
        self._pages_left = MAX_PAGES
        try:
            self._read_meta(kind)
        except BaseException:
            self._octets.close()
            raise

    def close(self) -> None:
        """Close the file, and give up the lock."""
        self._octets.close()

    def get(self, key: bytes) -> bytes | None:
        """Return the first value of `key`, None if there is none. Raises MapError."""
        self._pages_left = MAX_PAGES
        try:
            return self._get_hash(key) if self._is_hash else self._get_btree(key)
        except (struct.error, IndexError):
            raise self._octets.damaged("an item lies outside its page") from None

    # Metadata and pages

    def _read_meta(self, kind: str) -> None:
        if self._octets.size < META_OCTETS:
            raise self._octets.damaged(f"{self._octets.size} octets are no Berkeley DB file")
        meta = self._octets.read(0, META_OCTETS)
        for order in "<>":
            magic, version, self._page_octets = struct.unpack_from(f"{order}3I", meta, 12)
            if magic == MAGIC_OF[kind]:
                break
            other = next((other for other in MAGIC_OF if magic == MAGIC_OF[other]), "")
            if other:
                raise self._octets.error(f"a file of type {other}, not {kind}")
        else:
            raise self._octets.damaged("no Berkeley DB file")
        if version not in VERSIONS:
            raise self._octets.error(
                f"version {version} of the format; 8 and 9 are known (Berkeley DB 4 and 5)"
            )
        size = self._page_octets
        if size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536) or meta[25] != META_PAGE_OF[kind]:
            raise self._octets.damaged("its first page")
        self._order = order
        self._number = struct.Struct(f"{order}I")
        self._head = struct.Struct(f"{order}IIIHHBB")  # from 8 on
        self._is_hash = kind == "hash"
        self._last_page = self._number.unpack_from(meta, 32)[0]
        self._check_flags(meta, kind)
        if self._is_hash:
            self._read_hash_meta(meta)
        else:
            self._root = self._number.unpack_from(meta, 88)[0]

    def _check_flags(self, meta: bytes, kind: str) -> None:
        flags = self._number.unpack_from(meta, 48)[0]
        if meta[24] or meta[26] & CHECKSUMS:
            raise self._octets.error("with encryption or checksums; postmap and makemap write neither")
        if flags & NOT_READ[kind]:
            raise self._octets.error("several databases in one file, records by number, or compression")

    def _read_hash_meta(self, meta: bytes) -> None:
        fields = struct.unpack_from(f"{self._order}6I", meta, 72)
        self._max_bucket, self._high_mask, self._low_mask = fields[:3]
        self._spares = struct.unpack_from(f"{self._order}32I", meta, 96)
        if fields[5] != _hash(HASH_CHECK_KEY):
            raise self._octets.error("made with a hash function of its own")
        if self._max_bucket > self._high_mask or self._low_mask > self._high_mask:
            raise self._octets.damaged("its number of buckets")

    def _page(self, number: int) -> Page:
        if number > self._last_page:
            raise self._octets.damaged(f"page {number} is behind the last, {self._last_page}")
        self._pages_left -= 1
        if self._pages_left < 0:
            raise self._octets.damaged(f"a look-up that needs more than {MAX_PAGES} pages")
        octets = self._octets.read(number * self._page_octets, self._page_octets)
        own, _previous, following, count, free, _level, kind = self._head.unpack_from(octets, 8)
        if own != number:
            raise self._octets.damaged(f"page {number} says that it is page {own}")
        if kind == OVERFLOW:
            # It has no items but one, and `free` is how much of it there is.
            return Page(octets, kind, following, (free,))
        end = PAGE_HEAD_OCTETS + 2 * count
        if end > len(octets):
            raise self._octets.damaged(f"page {number} has {count} items")
        places = struct.unpack_from(f"{self._order}{count}H", octets, PAGE_HEAD_OCTETS)
        if places and (min(places) < end or max(places) >= len(octets)):
            raise self._octets.damaged(f"page {number} has an item outside itself")
        return Page(octets, kind, following, places)

    def _elsewhere(self, item: bytes) -> bytes:
        """Return what is too long for a page, from the pages that `item` (12 octets) refers to."""
        number, length = struct.unpack_from(f"{self._order}II", item, 4)
        if length > MAX_VALUE_OCTETS:
            raise self._octets.error(f"an item of {length} octets, at most {MAX_VALUE_OCTETS} are read")
        pieces = []
        left = length
        while left > 0:
            page = self._page(number)
            if page.kind != OVERFLOW or not 0 < page.places[0] <= self._page_octets - PAGE_HEAD_OCTETS:
                raise self._octets.damaged(f"page {number} is no part of a long item")
            piece = page.octets[PAGE_HEAD_OCTETS : PAGE_HEAD_OCTETS + min(left, page.places[0])]
            pieces.append(piece)
            left -= len(piece)
            number = page.next
        return b"".join(pieces)

    # Hash

    def _get_hash(self, key: bytes) -> bytes | None:
        bucket = _hash(key) & self._high_mask
        if bucket > self._max_bucket:
            bucket &= self._low_mask
        # A bucket's page lies behind those of the doublings before its own.
        number = bucket + self._spares[min(bucket.bit_length(), 31)]
        while True:
            page = self._page(number)
            if page.kind not in (HASH_SORTED, HASH_UNSORTED):
                raise self._octets.damaged(f"page {number} is none of a hash")
            index = next(self._hash_candidates(page, key), None)
            if index is not None:
                return self._hash_value(self._hash_item(page, index + 1))
            number = page.next
            if not number:
                return None

    def _hash_candidates(self, page: Page, key: bytes) -> Iterator[int]:
        """Return the indices of items that are this key."""
        # Looking for the octets in the page is ten times quicker than looking at each item.
        item = bytes((HASH_PLAIN,)) + key
        place = page.octets.find(item, PAGE_HEAD_OCTETS)
        while place >= 0:
            if place in page.places:
                index = page.places.index(place)
                if index % 2 == 0 and len(self._hash_item(page, index)) == len(item):
                    yield index
            place = page.octets.find(item, place + 1)
        if len(key) > self._page_octets // 4:
            for index in range(0, len(page.places), 2):
                found = self._hash_item(page, index)
                if found[0] == HASH_ELSEWHERE and self._elsewhere(found) == key:
                    yield index

    def _hash_item(self, page: Page, index: int) -> bytes:
        end = page.places[index - 1] if index else self._page_octets
        item = page.octets[page.places[index] : end]
        if not item:
            raise self._octets.damaged("an item of no octets")
        return item

    def _hash_value(self, item: bytes) -> bytes:
        if item[0] == HASH_PLAIN:
            return item[1:]
        if item[0] == HASH_ELSEWHERE:
            return self._elsewhere(item)
        if item[0] == HASH_DUPLICATES:
            # Each between two copies of its length; the first holds.
            length = struct.unpack_from(f"{self._order}H", item, 1)[0]
            if 3 + length > len(item):
                raise self._octets.damaged("a duplicate is longer than its item")
            return item[3 : 3 + length]
        raise self._not_one_value(item[0] == HASH_DUPLICATES_ELSEWHERE)

    def _not_one_value(self, many: bool) -> MapError:
        if many:
            return self._octets.error("one key has so many values that they fill pages; a login needs one")
        return self._octets.damaged("a value of no known kind")

    # Btree

    def _get_btree(self, key: bytes) -> bytes | None:
        number = self._root
        for _ in range(MAX_DEPTH):
            page = self._page(number)
            if page.kind == INTERNAL:
                number = self._child(page, key)
            elif page.kind == LEAF:
                return self._in_leaf(page, key)
            else:
                raise self._octets.damaged(f"page {number} is none of a btree")
        raise self._octets.damaged(f"deeper than {MAX_DEPTH} pages")

    def _child(self, page: Page, key: bytes) -> int:
        """Return the page below: that of the last key that is not behind `key`."""
        if not page.places:
            raise self._octets.damaged("an inner page without children")
        low, high = 0, len(page.places) - 1
        while low < high:
            middle = (low + high + 1) // 2
            # The first key of a page stands for all before the second, whatever it says.
            if self._inner_key(page, middle) <= key:
                low = middle
            else:
                high = middle - 1
        child: int = self._number.unpack_from(page.octets, page.places[low] + 4)[0]
        return child

    def _inner_key(self, page: Page, index: int) -> bytes:
        place = page.places[index]
        length, kind = struct.unpack_from(f"{self._order}HB", page.octets, place)
        octets = self._inside(page, place + 12, length)
        return self._elsewhere(octets) if kind & ~DELETED == TREE_ELSEWHERE else octets

    def _in_leaf(self, page: Page, key: bytes) -> bytes | None:
        """Return the value of the first pair with this key that is not deleted."""
        pairs = len(page.places) // 2
        low, high = 0, pairs
        while low < high:
            middle = (low + high) // 2
            if self._leaf_item(page, 2 * middle)[0] < key:
                low = middle + 1
            else:
                high = middle
        for pair in range(low, pairs):
            if self._leaf_item(page, 2 * pair)[0] != key:
                break
            value, is_deleted = self._leaf_item(page, 2 * pair + 1)
            if not is_deleted:
                return value
        return None

    def _leaf_item(self, page: Page, index: int) -> tuple[bytes, bool]:
        place = page.places[index]
        length, kind = struct.unpack_from(f"{self._order}HB", page.octets, place)
        is_deleted = bool(kind & DELETED)
        kind &= ~DELETED
        if kind == TREE_PLAIN:
            return self._inside(page, place + 3, length), is_deleted
        if kind == TREE_ELSEWHERE:
            return (b"" if is_deleted else self._elsewhere(self._inside(page, place, 12))), is_deleted
        raise self._not_one_value(kind == TREE_DUPLICATES_ELSEWHERE)

    def _inside(self, page: Page, place: int, length: int) -> bytes:
        octets = page.octets[place : place + length]
        if len(octets) != length:
            raise self._octets.damaged("an item is longer than its page")
        return octets


def _hash(key: bytes) -> int:
    """Berkeley DB's own hash function (Fowler, Noll, Vo) since version 5 of the hash format."""
    number = 0
    for octet in key:
        number = (number * 16777619 & 0xFFFFFFFF) ^ octet
    return number
