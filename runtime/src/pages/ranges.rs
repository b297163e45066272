//! Which pages of one task are missing: where they belong now, and where they were when they were dumped.
//!
//! A task may move its memory, drop parts of it and hand a copy to a child; a page keeps the address it has in the image
//! through all of it. This is arithmetic only: it knows no descriptor and makes no call.

use std::collections::BTreeMap;

use super::layout::Range;

/// Missing pages, as ranges that do not touch each other's pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// By the address at which a range begins now.
    pieces: BTreeMap<u64, Piece>,
    /// How far pieces are away from where they were, each distance once; few, because few programs move memory.
    distances: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    /// Address now less address in the image, wrapping.
    distance: u64,
}

/// A part of what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// Where it belongs.
    pub(super) now: Range,
    /// The address of its first page in the image.
    pub(super) image: u64,
}

impl Ranges {
    pub(super) fn of(ranges: &[Range]) -> Self {
        let piece = |range: &Range| {
            let piece = Piece {
                end: range.end,
                distance: 0,
            };
            (range.start, piece)
        };
        Self {
            pieces: ranges.iter().map(piece).collect(),
            distances: vec![0],
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What is missing from the page at `address` on, without a gap.
    pub(super) fn at(&self, address: u64) -> Option<Missing> {
        let (_, piece) = self.pieces.range(..=address).next_back()?;
        (address < piece.end).then(|| missing(address, *piece))
    }

    /// The first part of the pages `image` that is missing.
    pub(super) fn of_image(&self, image: Range) -> Option<Missing> {
        self.distances.iter().find_map(|distance| {
            let start = image.start.wrapping_add(*distance);
            let end = start.checked_add(image.bytes())?;
            let overlapping = self.overlapping(Range { start, end });
            overlapping
                .filter(|(_, piece)| piece.distance == *distance)
                .map(|(first, piece)| {
                    let piece = Piece {
                        end: piece.end.min(end),
                        ..*piece
                    };
                    missing((*first).max(start), piece)
                })
                .next()
        })
    }

    /// Everything that is missing, by address.
    pub(super) fn all(&self) -> impl Iterator<Item = Missing> {
        self.pieces.iter().map(|(start, piece)| missing(*start, *piece))
    }

    /// Nothing in the range is missing any more.
    pub(super) fn remove(&mut self, range: Range) {
        drop(self.take(range));
    }

    /// What was at `from` is at `to` now.
    pub(super) fn remap(&mut self, from: u64, to: u64, bytes: u64) {
        let Some(end) = from.checked_add(bytes) else {
            return;
        };
        let by = to.wrapping_sub(from);
        for (start, piece) in self.take(Range { start: from, end }) {
            let distance = piece.distance.wrapping_add(by);
            let (Some(start), Some(end)) = (moved(start, by), moved(piece.end, by)) else {
                continue;
            };
            // Linux up to 6.14 tells too great a length of a move that also shrinks. What is behind the true end is
            // another mapping's, and that one's pages must stay.
            let others = self.take(Range { start, end });
            self.pieces.insert(start, Piece { end, distance });
            for (start, other) in others {
                let end = other.end;
                drop(self.take(Range { start, end }));
                self.pieces.insert(start, other);
            }
            if !self.distances.contains(&distance) {
                self.distances.push(distance);
            }
        }
    }

    fn overlapping(&self, range: Range) -> impl Iterator<Item = (&u64, &Piece)> {
        let before = self.pieces.range(..range.start).next_back();
        let before = before.filter(move |(_, piece)| piece.end > range.start);
        before
            .into_iter()
            .chain(self.pieces.range(range.start..range.end.max(range.start)))
    }

    /// Cuts the range out.
    fn take(&mut self, range: Range) -> Vec<(u64, Piece)> {
        let touched: Vec<_> = self
            .overlapping(range)
            .map(|(start, piece)| (*start, *piece))
            .collect();
        let mut taken = Vec::with_capacity(touched.len());
        for (start, piece) in touched {
            self.pieces.remove(&start);
            if start < range.start {
                let end = range.start;
                self.pieces.insert(start, Piece { end, ..piece });
            }
            if piece.end > range.end {
                self.pieces.insert(range.end, piece);
            }
            let end = piece.end.min(range.end);
            taken.push((start.max(range.start), Piece { end, ..piece }));
        }
        taken
    }
}

fn moved(address: u64, by: u64) -> Option<u64> {
    address.checked_add_signed(by.cast_signed())
}

fn missing(start: u64, piece: Piece) -> Missing {
    Missing {
        now: Range {
            start,
            end: piece.end,
        },
        image: start.wrapping_sub(piece.distance),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A page's address in the image, by the page's address now; what `Ranges` must be equal to.
    type Model = BTreeMap<u64, u64>;

    fn pages(ranges: &Ranges) -> Model {
        let each = |missing: Missing| {
            (missing.now.start..missing.now.end)
                .map(move |now| (now, missing.image + now - missing.now.start))
        };
        ranges.all().flat_map(each).collect()
    }

    #[derive(Clone, Debug)]
    enum Change {
        Remove(u64, u64),
        Remap(u64, u64, u64),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0u64..200, 0u64..40).prop_map(|(start, length)| Change::Remove(start, start + length)),
            (0u64..200, 0u64..200, 1u64..40).prop_map(|(from, to, length)| Change::Remap(from, to, length)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_a_task_does_every_page_is_known_by_both_of_its_addresses(
            changes in prop::collection::vec(change(), 0..24),
        ) {
            let first = [Range { start: 10, end: 60 }, Range { start: 60, end: 70 }, Range { start: 90, end: 150 }];
            let mut ranges = Ranges::of(&first);
            let mut model = pages(&ranges);
            for change in changes {
                match change {
                    Change::Remove(start, end) => {
                        ranges.remove(Range { start, end });
                        model.retain(|now, _| !(start..end).contains(now));
                    }
                    Change::Remap(from, to, length) => {
                        // The kernel moves nothing onto itself, and unmaps first what is there.
                        if from.abs_diff(to) < length { continue; }
                        ranges.remove(Range { start: to, end: to + length });
                        ranges.remap(from, to, length);
                        model.retain(|now, _| !(to..to + length).contains(now));
                        let moved: Vec<_> = model.range(from..from + length).map(|(a, b)| (*a, *b)).collect();
                        for (now, image) in moved {
                            model.remove(&now);
                            model.insert(now - from + to, image);
                        }
                    }
                }
                prop_assert_eq!(&pages(&ranges), &model);
                for now in 0..400 {
                    prop_assert_eq!(ranges.at(now).map(|found| found.image), model.get(&now).copied());
                }
                for image in 0..160 {
                    let found = ranges.of_image(Range { start: image, end: image + 1 });
                    prop_assert_eq!(found.is_some(), model.values().any(|at| *at == image));
                    if let Some(found) = found {
                        prop_assert_eq!(model.get(&found.now.start), Some(&image));
                        prop_assert_eq!(found.now.bytes(), 1);
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_long_message_of_a_move_covers_too_much_stays_where_it_is() {
        let mut ranges = Ranges::of(&[Range { start: 0, end: 8 }, Range { start: 104, end: 112 }]);
        // Four pages were moved; the kernel tells of eight.
        ranges.remap(0, 100, 8);
        assert_eq!(ranges.at(104).map(|found| found.image), Some(104));
        assert_eq!(ranges.at(103).map(|found| found.image), Some(3));
        assert_eq!(ranges.at(111).map(|found| found.image), Some(111));
    }
}
