//! Curves as inline SVG.

use serde::Serialize;

/// A curve.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// How the key calls it.
    pub(super) name: String,
    /// Place and value; what is no number is left out of the picture, not of the data.
    pub(super) points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub(super) look: Look,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// A line.
    Line,
    /// A pale line behind the others.
    Thin,
    /// Points.
    Dots,
}

/// Points of a curve at most: more than there are columns of pixels say nothing.
const MOST_POINTS: usize = 600;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;

/// Colours of the style sheet.
const COLOURS: usize = 6;

/// Curves in coordinates of the picture, for the template.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    title: String,
    across: String,
    width: f64,
    height: f64,
    /// Where lines of the grid end.
    left: String,
    right: String,
    rows: Vec<Tick>,
    columns: Vec<Tick>,
    curves: Vec<Curve>,
}

/// A place on an axis and the number that stands there.
#[derive(Debug, Serialize)]
struct Tick {
    at: String,
    label: String,
}

#[derive(Debug, Serialize)]
struct Curve {
    name: String,
    colour: usize,
    is_thin: bool,
    /// `x,y` pairs; empty where points alone are drawn.
    line: String,
    points: Vec<(String, String)>,
}

/// A picture of curves over a common axis; `None` where there is no number.
pub(super) fn chart(title: &str, across: &str, series: &[Series]) -> Option<Chart> {
    let drawn: Vec<Series> = series.iter().map(thinned).collect();
    let points = || drawn.iter().flat_map(|one| &one.points);
    let x = Axis::over(points().map(|point| point.0))?;
    let y = Axis::over(points().map(|point| point.1))?;
    let right = |value: f64| short(LEFT + x.share(value) * (WIDTH - LEFT - RIGHT));
    let down = |value: f64| short(TOP + (1.0 - y.share(value)) * (HEIGHT - TOP - BOTTOM));
    let curve = |(colour, one): (usize, &Series)| {
        let places: Vec<(String, String)> =
            one.points.iter().map(|&(a, b)| (right(a), down(b))).collect();
        // A line of one point is not to be seen.
        let is_line = one.look != Look::Dots && places.len() > 1;
        let joined =
            || places.iter().map(|(x, y)| format!("{x},{y}")).collect::<Vec<_>>().join(" ");
        Curve {
            name: one.name.clone(),
            colour: colour % COLOURS,
            is_thin: one.look == Look::Thin,
            line: if is_line { joined() } else { String::new() },
            points: if is_line { Vec::new() } else { places },
        }
    };
    let tick = |axis: &Axis, at: String, value| Tick { at, label: axis.label(value) };
    Some(Chart {
        title: title.to_owned(),
        across: across.to_owned(),
        width: WIDTH,
        height: HEIGHT,
        left: short(LEFT),
        right: short(WIDTH - RIGHT),
        rows: y.ticks().into_iter().map(|value| tick(&y, down(value), value)).collect(),
        columns: x.ticks().into_iter().map(|value| tick(&x, right(value), value)).collect(),
        curves: drawn.iter().enumerate().map(curve).collect(),
    })
}

/// Means of neighbours where there are more points than can be seen.
fn thinned(series: &Series) -> Series {
    let is_number = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let points: Vec<(f64, f64)> = series.points.iter().filter(is_number).copied().collect();
    let size = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let sums = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sums.0 / part.len() as f64, sums.1 / part.len() as f64)
    };
    Series { points: points.chunks(size).map(mean).collect(), ..series.clone() }
}

/// A range of values with round numbers in it.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if low > high {
            return None;
        }
        // A flat curve gets a range all the same.
        let margin = if high > low { 0.0 } else { high.abs().max(1.0) * 0.1 };
        let (low, high) = (low - margin, high + margin);
        Some(Self { low, high, step: round_step((high - low) / 5.0) })
    }

    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step).ceil();
        let count = ((self.high / self.step).floor() - first) as usize;
        (0..=count.min(20)).map(|index| (first + index as f64) * self.step).collect()
    }

    fn label(&self, value: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0);
        if digits > 6.0 { format!("{value:.0e}") } else { format!("{value:.*}", digits as usize) }
    }
}

/// 1, 2 or 5 times a power of ten, not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= step);
    factor.unwrap_or(10.0) * power
}

/// A coordinate to a tenth of a pixel.
fn short(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Series {
        Series { name: "loss".into(), points: points.to_vec(), look: Look::Line }
    }

    #[test]
    fn a_curve_is_drawn_between_its_axes() {
        let chart = chart("Loss", "step", &[line(&[(1.0, 4.0), (2.0, 2.0), (3.0, 1.0)])]).unwrap();
        assert_eq!(chart.curves[0].line, "56.0,10.0 382.0,143.3 708.0,210.0");
        let labels = |ticks: &[Tick]| -> Vec<String> {
            ticks.iter().map(|tick| format!("{} at {}", tick.label, tick.at)).collect()
        };
        assert_eq!(labels(&chart.rows), ["1 at 210.0", "2 at 143.3", "3 at 76.7", "4 at 10.0"]);
        assert_eq!(labels(&chart.columns)[0], "1.0 at 56.0");
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        assert!(chart("Loss", "step", &[line(&[(1.0, f64::NAN)])]).is_none());
        let one = chart("Loss", "step", &[line(&[(1.0, f64::INFINITY), (2.0, 3.0)])]).unwrap();
        assert_eq!((one.curves[0].line.as_str(), one.curves[0].points.len()), ("", 1));
    }

    #[test]
    fn a_long_run_is_thinned_to_what_can_be_seen() {
        let points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        let thin = thinned(&line(&points));
        assert!(thin.points.len() <= MOST_POINTS, "{}", thin.points.len());
        assert!(thin.points.iter().all(|point| (point.1 - 1.0).abs() < 1e-12));
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(round_step(0.07), 0.1);
        assert_eq!(round_step(30.0), 50.0);
        let axis = Axis::over([1e-5, 2e-4].into_iter()).unwrap();
        assert_eq!(axis.label(axis.ticks()[0]), "0.00005");
    }
}
