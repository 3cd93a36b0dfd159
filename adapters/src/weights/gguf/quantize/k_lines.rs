//! The lines of the 8 sub-blocks of `Q4_K` and `Q5_K` as a block stores them: 6-bit scales and minima
//! of two common units.

use half::f16;

use super::k::{LARGEST_SCALE, Line};
use super::{code, inverse};

/// How far from a scale and minimum better ones are sought.
const NEAR: u8 = 2;
/// How often units and codes are chosen anew for each other.
const ROUNDS: u8 = 3;

/// The stored lines of a block.
#[derive(Clone, Copy)]
pub(super) struct StoredLines {
    /// As f16 holds it.
    pub(super) unit: f32,
    /// As f16 holds it.
    pub(super) minimum_unit: f32,
    /// Scale and minimum of each sub-block.
    pub(super) packed: [(u8, u8); 8],
}

impl StoredLines {
    /// Units that reach the largest scale and minimum, and the nearest codes.
    pub(super) fn rounded(lines: &[Line; 8]) -> Self {
        let unit_of = |part: fn(&Line) -> f32| {
            half(lines.iter().map(part).fold(0.0, f32::max) / LARGEST_SCALE)
        };
        let (unit, minimum_unit) = (unit_of(|line| line.scale), unit_of(|line| line.minimum));
        let packed = lines.map(|line| {
            let scale = code(line.scale * inverse(unit), 0.0, LARGEST_SCALE);
            let minimum = code(line.minimum * inverse(minimum_unit), 0.0, LARGEST_SCALE);
            (scale as u8, minimum as u8)
        });
        Self { unit, minimum_unit, packed }
    }

    /// The best of a few rounds in which codes are sought near those at hand, and units follow from
    /// the codes by weighted least squares.
    pub(super) fn refined(
        self,
        values: &[[f32; 32]],
        importance: &[[f32; 32]],
        largest_code: f32,
    ) -> Self {
        let (mut lines, mut best, mut least_error) = (self, self, f32::INFINITY);
        for _ in 0..ROUNDS {
            let mut error = 0.0;
            for place in 0..lines.packed.len() {
                let (values, importance) = (&values[place], &importance[place]);
                error += lines.choose(place, values, importance, largest_code);
            }
            if error < least_error {
                (best, least_error) = (lines, error);
            }
            let Some(next) = lines.refitted(values, importance, largest_code) else { break };
            lines = next;
        }
        best
    }

    fn line(&self, (scale, minimum): (u8, u8)) -> Line {
        Line {
            scale: self.unit * f32::from(scale),
            minimum: self.minimum_unit * f32::from(minimum),
        }
    }

    /// Takes the best scale and minimum near those of a sub-block, and gives their error.
    fn choose(
        &mut self,
        place: usize,
        values: &[f32; 32],
        importance: &[f32; 32],
        largest_code: f32,
    ) -> f32 {
        let near = |code: u8| code.saturating_sub(NEAR)..=(code + NEAR).min(LARGEST_SCALE as u8);
        let at_hand = self.packed[place];
        let mut least_error = f32::INFINITY;
        for scale in near(at_hand.0) {
            for minimum in near(at_hand.1) {
                let error = self.line((scale, minimum)).error(values, importance, largest_code);
                if error < least_error {
                    (self.packed[place], least_error) = ((scale, minimum), error);
                }
            }
        }
        least_error
    }

    /// The units of least squares for the codes at hand.
    fn refitted(
        &self,
        values: &[[f32; 32]],
        importance: &[[f32; 32]],
        largest_code: f32,
    ) -> Option<Self> {
        let (mut aa, mut ab, mut bb, mut xa, mut xb) =
            (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
        for ((packed, values), importance) in self.packed.iter().zip(values).zip(importance) {
            let codes = self.line(*packed).codes(values, largest_code);
            for ((value, weight), code) in values.iter().zip(importance).zip(codes) {
                let (x, w) = (f64::from(*value), f64::from(*weight));
                let (a, b) = (f64::from(packed.0) * f64::from(code), f64::from(packed.1));
                aa += w * a * a;
                ab += w * a * b;
                bb += w * b * b;
                xa += w * x * a;
                xb += w * x * b;
            }
        }
        let determinant = aa * bb - ab * ab;
        let (unit, minimum_unit) = if bb == 0.0 {
            (xa / aa, f64::from(self.minimum_unit))
        } else {
            ((xa * bb - xb * ab) / determinant, (xa * ab - xb * aa) / determinant)
        };
        let (unit, minimum_unit) = (half(unit as f32), half(minimum_unit as f32));
        let is_usable = unit > 0.0 && unit.is_finite() && minimum_unit >= 0.0;
        (is_usable && minimum_unit.is_finite()).then_some(Self { unit, minimum_unit, ..*self })
    }
}

/// As f16 holds it.
fn half(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}
