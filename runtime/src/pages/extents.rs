//! Sets of pages of one address space, as ascending ranges that do not touch, and what can be asked of two of them.
//!
//! Arithmetic only: it knows neither tasks nor what is in a page.

use super::layout::Range;

/// A set of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Range>);

impl Extents {
    /// The pages of `ranges`, which may overlap and have any order. An empty range is none.
    pub fn of(ranges: impl IntoIterator<Item = Range>) -> Self {
        let mut ranges: Vec<Range> = ranges
            .into_iter()
            .filter(|range| range.start < range.end)
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut extents = Self::default();
        for range in ranges {
            extents.append(range);
        }
        extents
    }

    /// Adds a range that begins at or behind the beginning of the last.
    pub fn append(&mut self, range: Range) {
        match self.0.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.0.push(range),
        }
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(Range::bytes).sum()
    }

    /// What is in both.
    #[must_use]
    pub fn both(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = Self::default();
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let (start, end) = (a.start.max(b.start), a.end.min(b.end));
            if start < end {
                common.append(Range { start, end });
            }
            if a.end <= b.end {
                left.next();
            } else {
                right.next();
            }
        }
        common
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        let mut cuts = other.0.iter().peekable();
        for range in &self.0 {
            let mut start = range.start;
            while cuts.next_if(|cut| cut.end <= start).is_some() {}
            // A cut that reaches beyond this range may cut the next one as well.
            while let Some(cut) = cuts.peek().filter(|cut| cut.start < range.end) {
                if start < cut.start {
                    rest.append(Range {
                        start,
                        end: cut.start,
                    });
                }
                start = start.max(cut.end);
                if cut.end > range.end {
                    break;
                }
                cuts.next();
            }
            if start < range.end {
                rest.append(Range {
                    start,
                    end: range.end,
                });
            }
        }
        rest
    }

    /// What of it lies in each of `mappings`, which are ascending; no piece reaches over the border of one.
    #[must_use]
    pub fn within(&self, mappings: &[Range]) -> Vec<Range> {
        let mut pieces = Vec::new();
        for mapping in mappings {
            let first = self.0.partition_point(|range| range.end <= mapping.start);
            let inside = self.0[first..]
                .iter()
                .take_while(|range| range.start < mapping.end);
            pieces.extend(inside.map(|range| Range {
                start: range.start.max(mapping.start),
                end: range.end.min(mapping.end),
            }));
        }
        pieces
    }

    /// What is in one of them.
    #[must_use]
    pub fn either(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range((start, length): (u64, u64)) -> Range {
        Range {
            start,
            end: start + length,
        }
    }

    fn members(extents: &Extents) -> BTreeSet<u64> {
        extents
            .0
            .iter()
            .flat_map(|range| range.start..range.end)
            .collect()
    }

    fn is_normal(extents: &Extents) -> bool {
        extents.0.iter().all(|range| range.start < range.end)
            && extents.0.windows(2).all(|pair| pair[0].end < pair[1].start)
    }

    #[test]
    fn pieces_end_where_a_mapping_does() {
        let extents = Extents::of([range((10, 20)), range((40, 5))]);
        let mappings = [range((0, 12)), range((12, 8)), range((28, 14)), range((60, 9))];
        let pieces = [range((10, 2)), range((12, 8)), range((28, 2)), range((40, 2))];
        assert_eq!(extents.within(&mappings), pieces);
    }

    proptest! {
        #[test]
        fn they_are_sets(
            left in prop::collection::vec((0..200u64, 0..20u64), 0..12),
            right in prop::collection::vec((0..200u64, 0..20u64), 0..12),
        ) {
            let left = Extents::of(left.into_iter().map(range));
            let right = Extents::of(right.into_iter().map(range));
            let (a, b) = (members(&left), members(&right));
            for (made, wanted) in [
                (left.both(&right), a.intersection(&b).copied().collect()),
                (left.without(&right), a.difference(&b).copied().collect()),
                (left.either(&right), a.union(&b).copied().collect::<BTreeSet<_>>()),
            ] {
                prop_assert!(is_normal(&made), "{made:?}");
                prop_assert_eq!(made.bytes(), wanted.len() as u64);
                prop_assert_eq!(members(&made), wanted);
            }
        }
    }
}
