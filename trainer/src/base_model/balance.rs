//! The auxiliary loss that spreads tokens over experts (Fedus et al. 2021, arXiv 2101.03961), as
//! `transformers` computes it: over the tokens of all layers at once.
//!
//! With `E` experts, `f_e` the share of rows that went to expert `e` and `p_e` the mean of its
//! probability, the loss is `E * Σ f_e * p_e`. The choice has no gradient, so that of a row's
//! probability is `E * f_e / rows`.

/// How rows fell on experts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Load {
    rows: f64,
    /// Rows that went to each expert.
    chosen: Vec<f64>,
    /// Sums of each expert's probability.
    probabilities: Vec<f64>,
}

impl Load {
    /// Of one layer: rows that went to each expert, and the probabilities of all.
    ///
    /// # Shapes
    /// - `probabilities`: `[rows, experts]`
    pub(super) fn of(chosen: impl Iterator<Item = usize>, probabilities: &[f32]) -> Self {
        let chosen: Vec<f64> = chosen.map(|rows| rows as f64).collect();
        let experts = chosen.len().max(1);
        let mut sums = vec![0.0; experts];
        for row in probabilities.chunks_exact(experts) {
            for (sum, &probability) in sums.iter_mut().zip(row) {
                *sum += f64::from(probability);
            }
        }
        Self { rows: (probabilities.len() / experts) as f64, chosen, probabilities: sums }
    }

    /// Takes another layer in.
    pub(super) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        for (sums, more) in
            [(&mut self.chosen, &other.chosen), (&mut self.probabilities, &other.probabilities)]
        {
            sums.resize(more.len(), 0.0);
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
    }

    /// The loss, without its factor; nothing where no layer has experts.
    pub(super) fn loss(&self) -> Option<f64> {
        let experts = self.chosen.len() as f64;
        let products = self.chosen.iter().zip(&self.probabilities).map(|(f, p)| f * p);
        (self.rows > 0.0).then(|| experts * products.sum::<f64>() / (self.rows * self.rows))
    }

    /// Gradient of `factor` times the loss by a row's probability of each expert.
    pub(super) fn slopes(&self, factor: f64) -> Vec<f32> {
        let scale = factor * self.chosen.len() as f64 / (self.rows * self.rows).max(1.0);
        self.chosen.iter().map(|chosen| (scale * chosen) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_loads_cost_the_experts_of_a_token() {
        let even = Load::of([2, 2].into_iter(), &[0.5; 4]);
        assert_eq!(even.loss(), Some(2.0));
        let uneven = Load::of([2, 0].into_iter(), &[0.9, 0.1, 0.9, 0.1]);
        assert!((uneven.loss().unwrap() - 1.8).abs() < 1e-6);
        assert_eq!(Load::default().loss(), None);
    }

    #[test]
    fn layers_count_as_one() {
        let layers = [[0.9_f32, 0.1], [0.2, 0.8]];
        let mut sum = Load::default();
        for (layer, chosen) in layers.iter().zip([[1, 0], [0, 1]]) {
            sum.add(&Load::of(chosen.into_iter(), layer));
        }
        let together = Load::of([1, 1].into_iter(), &layers.concat());
        assert_eq!(sum, together);
    }

    #[test]
    fn slopes_equal_differences() {
        let loss = |p: [f32; 4]| Load::of([2, 1].into_iter(), &p).loss().unwrap();
        let (at, step) = ([0.6_f32, 0.4, 0.7, 0.3], 1e-2);
        let slopes = Load::of([2, 1].into_iter(), &at).slopes(3.0);
        for expert in 0..2 {
            let mut moved = at;
            moved[2 + expert] += step;
            let difference = 3.0 * (loss(moved) - loss(at)) / f64::from(step);
            assert!((difference - f64::from(slopes[expert])).abs() < 1e-4, "{difference}");
        }
    }
}
