//! Areas of given weights in a rectangle, as near to squares as they come (Bruls, Huizing and van Wijk, "Squarified
//! Treemaps", 2000): a row along the shorter side takes the next weight as long as that makes its worst rectangle better.

/// A rectangle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    /// Its left side.
    pub x: f64,
    /// Its upper side.
    pub y: f64,
    /// How wide it is.
    pub width: f64,
    /// How high it is.
    pub height: f64,
}

impl Rect {
    /// What is left of it behind a margin on all sides and more above.
    pub fn within(&self, margin: f64, above: f64) -> Self {
        Self {
            x: self.x + margin,
            y: self.y + margin + above,
            width: (self.width - 2.0 * margin).max(0.0),
            height: (self.height - 2.0 * margin - above).max(0.0),
        }
    }
}

/// A rectangle within `area` for each weight, in their order; they look best if that descends.
pub fn squarified(weights: &[u64], area: Rect) -> Vec<Rect> {
    let total: f64 = weights.iter().map(|weight| *weight as f64).sum();
    if total <= 0.0 {
        return vec![
            Rect {
                width: 0.0,
                height: 0.0,
                ..area
            };
            weights.len()
        ];
    }
    let scale = area.width * area.height / total;
    let areas: Vec<f64> = weights.iter().map(|weight| *weight as f64 * scale).collect();
    let (mut rects, mut free) = (Vec::with_capacity(areas.len()), area);
    let mut rest = areas.as_slice();
    while !rest.is_empty() {
        let side = free.width.min(free.height);
        let mut n_row = 1;
        while n_row < rest.len() && worst(&rest[..=n_row], side) <= worst(&rest[..n_row], side) {
            n_row += 1;
        }
        let (row, behind) = rest.split_at(n_row);
        free = lay(row, free, &mut rects);
        rest = behind;
    }
    rects
}

/// How far the rectangle that is farthest from a square is from one.
fn worst(row: &[f64], side: f64) -> f64 {
    let sum: f64 = row.iter().sum();
    let (least, most) = row.iter().fold((f64::MAX, 0.0_f64), |(least, most), area| {
        (least.min(*area), most.max(*area))
    });
    if least <= 0.0 || side <= 0.0 {
        return f64::MAX;
    }
    let (side, sum) = (side * side, sum * sum);
    (side * most / sum).max(sum / (side * least))
}

/// Lays a row along the shorter side; what is left free.
fn lay(row: &[f64], free: Rect, rects: &mut Vec<Rect>) -> Rect {
    let sum: f64 = row.iter().sum();
    let is_upright = free.width >= free.height;
    let side = free.width.min(free.height).max(f64::MIN_POSITIVE);
    let thickness = sum / side;
    let mut at = 0.0;
    for area in row {
        let length = if sum > 0.0 { area / sum * side } else { 0.0 };
        rects.push(if is_upright {
            Rect {
                x: free.x,
                y: free.y + at,
                width: thickness,
                height: length,
            }
        } else {
            Rect {
                x: free.x + at,
                y: free.y,
                width: length,
                height: thickness,
            }
        });
        at += length;
    }
    if is_upright {
        Rect {
            x: free.x + thickness,
            width: (free.width - thickness).max(0.0),
            ..free
        }
    } else {
        Rect {
            y: free.y + thickness,
            height: (free.height - thickness).max(0.0),
            ..free
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AREA: Rect = Rect {
        x: 10.0,
        y: 20.0,
        width: 600.0,
        height: 400.0,
    };

    #[test]
    fn the_papers_example_comes_out_as_in_the_paper() {
        let area = Rect {
            x: 0.0,
            y: 0.0,
            width: 6.0,
            height: 4.0,
        };
        let rects = squarified(&[6, 6, 4, 3, 2, 2, 1], area);
        let told: Vec<(f64, f64)> = rects.iter().map(|rect| (rect.width, rect.height)).collect();
        assert_eq!(told[..2], [(3.0, 2.0), (3.0, 2.0)]);
        assert!(
            (told[2].0 - 12.0 / 7.0).abs() < 1e-9 && (told[2].1 - 7.0 / 3.0).abs() < 1e-9,
            "{told:?}"
        );
    }

    proptest! {
        #[test]
        fn each_weight_has_its_share_within_the_area(weights in prop::collection::vec(0_u64..1 << 40, 1..60)) {
            let rects = squarified(&weights, AREA);
            prop_assert_eq!(rects.len(), weights.len());
            let total: f64 = weights.iter().map(|weight| *weight as f64).sum();
            for (rect, weight) in rects.iter().zip(&weights) {
                prop_assert!(rect.x >= AREA.x - 1e-6 && rect.y >= AREA.y - 1e-6);
                prop_assert!(rect.x + rect.width <= AREA.x + AREA.width + 1e-6);
                prop_assert!(rect.y + rect.height <= AREA.y + AREA.height + 1e-6);
                if total > 0.0 {
                    let share = *weight as f64 / total * AREA.width * AREA.height;
                    prop_assert!((rect.width * rect.height - share).abs() <= 1e-6 * AREA.width * AREA.height);
                }
            }
        }
    }
}
