//! Loss of rows of logits: a block takes a row.

use burn::tensor::Tensor;

use super::{Access, Element, File, Launch, Machine, Program, Scalars};

/// Threads of a block: rows are long.
const THREADS: u32 = 512;

/// The loss of each row, and `factor * (softmax - one_hot)` where a factor is given.
pub(crate) fn cross_entropy<M: Machine>(
    machine: &M,
    logits: &Tensor<2>,
    targets: &[u32],
    factor: Option<f64>,
) -> Option<(Tensor<1>, Option<Tensor<2>>)> {
    let [rows, vocab] = logits.dims();
    let element = Element::of(logits.dtype())?;
    if rows == 0 || targets.iter().any(|&target| target as usize >= vocab) {
        return None;
    }
    let input = machine.read(logits)?;
    let wanted = machine.upload(&input, bytemuck::cast_slice(targets));
    let losses = machine.empty(&input, burn::tensor::DType::F32, rows);
    // Without a gradient the kernel writes nothing here.
    let elements = factor.map_or(1, |_| rows * vocab);
    let gradient = machine.empty(&input, logits.dtype(), elements);
    let launch = Launch {
        program: Program::new(File::CrossEntropy, "cross_entropy", element),
        grid: [rows as u32, 1, 1],
        threads: THREADS,
        scalars: Scalars::default()
            .word(vocab)
            .float(factor.unwrap_or(0.0) as f32)
            .word(usize::from(factor.is_some())),
    };
    let arguments = [
        (&input, Access::Read),
        (&wanted, Access::Read),
        (&losses, Access::Write),
        (&gradient, Access::Write),
    ];
    machine.launch(&launch, &arguments);
    let gradient = factor.map(|_| machine.tensor(gradient, logits.dims()));
    Some((machine.tensor(losses, [rows]), gradient))
}
