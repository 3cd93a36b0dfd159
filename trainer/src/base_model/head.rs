//! The final norm, the output matrix and the loss, a chunk of rows at a time.
//!
//! Only positions whose target carries loss get logits, and `[tokens, vocab]` never exists.

use adapters::{AdaptedLinear, InputGradient, LoraGradients, Pass};
use burn::tensor::Tensor;
use datasets::IGNORED;
use kernels::TokenScore;

use super::norm::Norm;

/// The end of the network.
#[derive(Debug, Clone)]
pub struct OutputHead {
    pub(super) norm: Norm,
    /// `[vocab, hidden]`
    pub(super) linear: AdaptedLinear,
    /// Factor of the logits.
    pub(super) scale: f64,
    /// Bound of the logits.
    pub(super) soft_cap: Option<f64>,
}

/// Bytes that a chunk of logits may take.
pub const CHUNK_BYTES: usize = 48 << 20;

/// Loss of a micro-batch's trained positions and the gradient of the last hidden states.
pub(super) struct HeadGradient {
    pub(super) loss_sum: f64,
    /// `[tokens, hidden]`, `None` where no position carries loss.
    pub(super) d_hidden: Option<Tensor<2>>,
    pub(super) adapter: Option<LoraGradients>,
}

impl OutputHead {
    /// Logits of every row.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, hidden]`, returns `[rows, vocab]`
    pub fn logits(&self, hidden: &Tensor<2>) -> Tensor<2> {
        self.capped(self.linear.forward(&self.normed(hidden), Pass::Inference).y)
    }

    /// The output matrix's input. The factor of the logits is put here, where it costs least.
    pub(super) fn normed(&self, hidden: &Tensor<2>) -> Tensor<2> {
        let normed = self.norm.forward(hidden);
        if self.scale == 1.0 { normed } else { normed * self.scale }
    }

    fn capped(&self, logits: Tensor<2>) -> Tensor<2> {
        match self.soft_cap {
            Some(cap) => kernels::soft_cap(logits, cap),
            None => logits,
        }
    }

    /// Rows of a chunk: logits fit in [`CHUNK_BYTES`], and chunks are of one size, because a short
    /// one reads the output matrix for little work.
    fn chunk_rows(&self, rows: usize) -> usize {
        let vocab = self.linear.weight.dims()[0];
        let most = (CHUNK_BYTES / (4 * vocab)).clamp(16, 1024);
        rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
    }

    /// Sum of the losses of the positions that carry one, in nats.
    ///
    /// # Shapes
    /// - `hidden`: `[tokens, hidden]`, `targets`: `tokens`
    pub fn loss_sum(&self, hidden: &Tensor<2>, targets: &[i32]) -> f64 {
        let (rows, ids) = trained(targets);
        let chunk = self.chunk_rows(rows.len());
        rows.chunks(chunk)
            .zip(ids.chunks(chunk))
            .map(|(rows, ids)| {
                let logits = self.logits(&kernels::gather_rows(hidden, rows));
                kernels::cross_entropy(&logits, ids).loss_sum
            })
            .sum()
    }

    /// How probable tokens are after some rows of `hidden`; logits of a row are computed once.
    ///
    /// # Shapes
    /// - `hidden`: `[tokens, hidden]`, `wanted`: rows and token ids
    pub fn token_scores(&self, hidden: &Tensor<2>, wanted: &[(usize, u32)]) -> Vec<TokenScore> {
        let mut rows: Vec<usize> = wanted.iter().map(|&(row, _)| row).collect();
        rows.sort_unstable();
        rows.dedup();
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by_key(|&index| wanted[index].0);
        let unknown = TokenScore { log_probability: f64::NAN, is_best: false };
        let mut scores = vec![unknown; wanted.len()];
        let mut order = order.into_iter().peekable();
        for rows in rows.chunks(self.chunk_rows(rows.len())) {
            let logits = self.logits(&kernels::gather_rows(hidden, rows));
            let mut places = Vec::new();
            let mut asked = Vec::new();
            while let Some(index) = order.next_if(|&index| wanted[index].0 <= rows[rows.len() - 1])
            {
                let (row, token) = wanted[index];
                asked.push((rows.partition_point(|&other| other < row), token));
                places.push(index);
            }
            for (place, score) in places.into_iter().zip(kernels::token_scores(&logits, &asked)) {
                scores[place] = score;
            }
        }
        scores
    }

    /// Loss, and the gradient of `factor * loss_sum`.
    pub(super) fn loss_gradient(
        &self,
        hidden: &Tensor<2>,
        targets: &[i32],
        factor: f64,
        pass: Pass,
    ) -> HeadGradient {
        let (rows, ids) = trained(targets);
        if rows.is_empty() {
            return HeadGradient { loss_sum: 0.0, d_hidden: None, adapter: None };
        }
        let x = kernels::gather_rows(hidden, &rows);
        let normed = self.normed(&x);
        let chunk = self.chunk_rows(rows.len());
        let (mut loss_sum, mut gradients, mut adapter) = (0.0, Vec::new(), None);
        for (index, ids) in ids.chunks(chunk).enumerate() {
            let chunk_rows: Vec<usize> = (index * chunk..index * chunk + ids.len()).collect();
            let part = kernels::gather_rows(&normed, &chunk_rows);
            let output = self.linear.forward(&part, pass);
            let logits = self.capped(output.y);
            let kept = self.soft_cap.map(|cap| (logits.clone(), cap));
            let (loss, mut d_logits) = kernels::cross_entropy_gradient(logits, ids, factor);
            if let Some((logits, cap)) = kept {
                d_logits = kernels::soft_cap_gradient(d_logits, &logits, cap);
            }
            let (d_part, of_chunk) = self.linear.backward(
                (None, InputGradient::Needed),
                &d_logits,
                &part,
                output.saved.as_ref(),
                pass,
            );
            loss_sum += loss.loss_sum;
            gradients.push(d_part.expect("asked for"));
            adapter = sum(adapter, of_chunk);
        }
        let mut d_normed = Tensor::cat(gradients, 0);
        if self.scale != 1.0 {
            d_normed = d_normed * self.scale;
        }
        let dx = self.norm.backward(None, &d_normed, &x);
        let d_hidden = kernels::scatter_rows(&dx, &rows, targets.len());
        HeadGradient { loss_sum, d_hidden: Some(d_hidden), adapter }
    }
}

fn sum(total: Option<LoraGradients>, part: Option<LoraGradients>) -> Option<LoraGradients> {
    match (total, part) {
        (Some(total), Some(part)) => Some(total.plus(part)),
        (total, part) => total.or(part),
    }
}

/// Positions that carry loss and the tokens they predict.
fn trained(targets: &[i32]) -> (Vec<usize>, Vec<u32>) {
    targets
        .iter()
        .enumerate()
        .filter(|&(_, &target)| target != IGNORED)
        .map(|(row, &target)| (row, target as u32))
        .unzip()
}
